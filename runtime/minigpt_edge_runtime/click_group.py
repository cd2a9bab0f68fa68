"""The click group of all our commands: verbs imported when used, errors shown as a message and a hint."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from minigpt_edge_runtime.errors import EdgeError

INTERRUPTED = 130


class EdgeGroup(click.Group):
    """A group whose verbs come from a table: verb -> "module:attribute:one line of help".

    An EdgeError ends in `error: …` and `hint: …` on stderr and its exit code, Ctrl-C in the line
    `interrupted` and 130.
    """

    def __init__(
        self,
        *args: Any,
        verbs: Mapping[str, str] | None = None,
        interrupted: str = "interrupted",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = dict(verbs or {})
        self.interrupted = interrupted

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self.verbs[cmd_name].split(":", 2)
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, so that help imports none of them."""
        rows = [(verb, entry.split(":", 2)[2]) for verb, entry in self.verbs.items()]
        rows += [(name, command.get_short_help_str()) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command_name(args[0]) is None:
            ctx.fail(f"there is no command {args[0]!r}; there are: {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def get_command_name(self, name: str) -> str | None:
        """`name` if it is a verb of this group."""
        return name if name in self.verbs or name in self.commands else None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except EdgeError as error:
            show_error(error)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo(f"\n{self.interrupted}", err=True)
            sys.exit(INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def show_error(error: EdgeError) -> None:
    """Print an error's message and hint to stderr."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
