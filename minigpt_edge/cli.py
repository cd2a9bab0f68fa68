"""The workstation's command, `minigpt-edge`."""

from __future__ import annotations

import os

import click

from minigpt_edge.stages import parallel
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.cli import VERBS as DEVICE_VERBS
from minigpt_edge_runtime.click_group import EdgeGroup
from minigpt_edge_runtime.engines.spin import spin_briefly
from minigpt_edge_runtime.errors import UsageError

_COMMANDS = "minigpt_edge.commands"
VERBS = {
    "build": f"{_COMMANDS}.build:build:Make a small model for a domain: the whole way, resumable.",
    "sweep": f"{_COMMANDS}.sweep:sweep:Make many small models: every combination in a file.",
    **DEVICE_VERBS,
    "compare": f"{_COMMANDS}.compare:compare:Compare latency reports: a table of ratios, or a page.",
    "evaluate": f"{_COMMANDS}.evaluate:evaluate:Score a model on texts and question sets.",
    "domains": f"{_COMMANDS}.domains:domains:List the domains, or add one.",
    "tasks": f"{_COMMANDS}.lists:tasks:List the question sets.",
    "models": f"{_COMMANDS}.lists:models:List the base models that have a short name.",
    "targets": f"{_COMMANDS}.lists:targets:List the targets.",
    "methods": f"{_COMMANDS}.lists:methods:List the pruning methods.",
}


@click.group(
    cls=EdgeGroup,
    verbs=VERBS,
    interrupted="interrupted; the same command continues from here",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="minigpt-edge")
@click.pass_context
def cli(context: click.Context) -> None:
    """Turn a pretrained GPT-like model and a domain's text into a small model that runs offline."""
    if context.invoked_subcommand in ("build", "sweep", "evaluate"):
        spin_briefly(os.environ)
    if parallel.started() > 1 and context.invoked_subcommand != "build":
        raise UsageError(
            f"{context.invoked_subcommand} does not work in several processes, only build does",
            "start it by itself, without accelerate or torchrun",
        )


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="minigpt-edge")


if __name__ == "__main__":
    main()
