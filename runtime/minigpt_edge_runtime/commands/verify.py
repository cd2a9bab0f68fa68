"""verify: whether a bundle is whole and computes right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from minigpt_edge_runtime.commands.options import THREADS


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@THREADS
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def verify(bundle: Path, threads: int | None, as_json: bool) -> None:
    """Check BUNDLE's files against its manifest, then load and run its models. Exit 1 if it fails."""
    from minigpt_edge_runtime.bundle.verify import verify as check

    result = check(bundle, threads)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        marks = {True: "ok  ", False: "FAIL", None: "-   "}
        for line in result["checks"]:
            click.echo(f"{marks[line['ok']]} {line['name']}: {line['detail']}")
    if not result["ok"]:
        click.echo("error: the bundle failed verification\nhint: copy or build it again", err=True)
        sys.exit(1)
