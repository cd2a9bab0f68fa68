"""tasks, models, targets, methods: what there is to choose from."""

from __future__ import annotations

import json

import click


def _show(rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{row['name']:<{width}}  {row['about']}".rstrip())


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_JSON
def tasks(as_json: bool) -> None:
    """List the question sets that `evaluate` knows."""
    from minigpt_edge.data.tasks import known_tasks

    rows = [
        {"name": t.name, "about": f"{t.title}; {t.licence}", "hub": t.hub.dataset, "licence": t.licence}
        for t in known_tasks().values()
    ]
    rows.append(
        {
            "name": "mmlu:SUBJECT",
            "about": "examinations of 57 subjects; MIT",
            "hub": "cais/mmlu",
            "licence": "MIT",
        }
    )
    _show(rows, as_json)


@click.command()
@_JSON
def models(as_json: bool) -> None:
    """List the base models that have a short name."""
    from minigpt_edge.models.base_model import default_model, known_models

    rows = [
        {"name": name, "about": f"{entry['package']}{' (default)' if name == default_model() else ''}"}
        for name, entry in known_models().items()
    ]
    _show(rows, as_json)


@click.command()
@_JSON
def targets(as_json: bool) -> None:
    """List the targets: families first, which choose a type by measured quality per byte."""
    from minigpt_edge_export.targets import list_targets

    rows = [
        {"name": t.name, "about": "" if t.exact else f"the best of {', '.join(t.types)}"}
        for t in list_targets()
    ]
    _show(rows, as_json)


@click.command()
@_JSON
def methods(as_json: bool) -> None:
    """List the pruning methods."""
    from minigpt_edge.prune.methods.registry import DEFAULT_METHOD, METHODS

    rows = [
        {
            "name": m.name,
            "about": f"{m.summary}{' (default)' if m.name == DEFAULT_METHOD else ''} [{m.paper}]",
            "paper": m.paper,
            "patterns": ", ".join(m.patterns),
        }
        for m in METHODS.values()
    ]
    _show(rows, as_json)
