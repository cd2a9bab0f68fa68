"""Write docs/cli.md, the reference of all commands, from the commands themselves.

    .venv/bin/python tools/cli_reference.py [--check]

With --check nothing is written, and the exit status is 1 if the page is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
WIDTH = 100
HEAD = """# Commands

Written by `tools/cli_reference.py` from the commands' own `--help` (`make docs`).

Results go to stdout, as JSON with `--json`; the log goes to stderr. Exit status 0 is done, 1 failed with a
message and a hint, 2 wrong usage, 130 interrupted. A device that installs `./runtime` alone has
`minigpt-edge-runtime` with the commands {device}.
"""


def contexts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """The contexts of a command and of all below it, in the order of the help."""
    widths = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent, name, **{**command.context_settings, **widths})
    yield context
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            below = command.get_command(context, verb)
            if below is not None:
                yield from contexts(below, verb, context)


def reference() -> str:
    """The page."""
    from minigpt_edge.cli import cli
    from minigpt_edge_runtime.cli import VERBS

    parts = [HEAD.format(device=", ".join(f"`{verb}`" for verb in VERBS))]
    for context in contexts(cli, "minigpt-edge"):
        text = re.sub(r" +$", "", context.get_help(), flags=re.MULTILINE)
        parts.append(f"## {context.command_path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write or check the page; the exit status."""
    text = reference()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE} is out of date: make docs", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
