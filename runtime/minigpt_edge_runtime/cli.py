"""The device's own command, `minigpt-edge-runtime`."""

from __future__ import annotations

import click

from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.click_group import EdgeGroup

_COMMANDS = "minigpt_edge_runtime.commands"
VERBS = {
    "run": f"{_COMMANDS}.run:run:Stream text from a bundle or a model file.",
    "bench": f"{_COMMANDS}.bench:bench:Measure speed and memory on this machine.",
    "compare": f"{_COMMANDS}.compare:compare:Compare latency reports: a table of ratios.",
    "serve": f"{_COMMANDS}.serve:serve:Answer OpenAI-compatible requests on this machine.",
    "verify": f"{_COMMANDS}.verify:verify:Check that a bundle is whole and computes right.",
    "inspect": f"{_COMMANDS}.inspect:inspect:Show what is in a model, bundle, checkpoint, plan or report.",
}


@click.group(cls=EdgeGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="minigpt-edge-runtime")
def cli() -> None:
    """Run, measure and check minigpt-edge bundles on this device."""


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="minigpt-edge-runtime")


if __name__ == "__main__":
    main()
