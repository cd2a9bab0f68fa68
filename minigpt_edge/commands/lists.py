"""tasks, models, targets, methods: what there is to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable

import click

Rows = list[dict[str, str]]


def _listing(rows: Callable[[], Rows]) -> click.Command:
    """The command that lists what a function returns; it is called and explained as that is."""

    @click.command(rows.__name__, help=rows.__doc__)
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    def command(as_json: bool) -> None:
        found = rows()
        width = max(len(row["name"]) for row in found)
        lines = [f"{row['name']:<{width}}  {row['about']}".rstrip() for row in found]
        click.echo(json.dumps(found, ensure_ascii=False) if as_json else "\n".join(lines))

    return command


@_listing
def tasks() -> Rows:
    """List the question sets that `evaluate` knows."""
    from minigpt_edge.data.tasks import known_tasks

    mmlu = {"about": "examinations of 57 subjects; MIT", "hub": "cais/mmlu", "licence": "MIT"}
    return [
        {"name": t.name, "about": f"{t.title}; {t.licence}", "hub": t.hub.dataset, "licence": t.licence}
        for t in known_tasks().values()
    ] + [{"name": "mmlu:SUBJECT", **mmlu}]


@_listing
def models() -> Rows:
    """List the base models that have a short name."""
    from minigpt_edge.models.base_model import default_model, known_models

    return [
        {"name": name, "about": f"{entry['package']}{' (default)' if name == default_model() else ''}"}
        for name, entry in known_models().items()
    ]


@_listing
def targets() -> Rows:
    """List the targets: families first, which choose a type by measured quality per byte."""
    from minigpt_edge_export.targets import list_targets

    return [
        {"name": t.name, "about": t.note if t.exact else f"the best of {', '.join(t.types)}"}
        for t in list_targets()
    ]


@_listing
def methods() -> Rows:
    """List the pruning methods."""
    from minigpt_edge.prune.methods.registry import DEFAULT_METHOD, METHODS

    return [
        {
            "name": m.name,
            "about": f"{m.summary}{' (default)' if m.name == DEFAULT_METHOD else ''} [{m.paper}]",
            "paper": m.paper,
            "patterns": ", ".join(m.patterns),
        }
        for m in METHODS.values()
    ]
