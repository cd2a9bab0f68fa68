"""domains: what text there is, and adding one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def domains(context: click.Context, as_json: bool) -> None:
    """List the domains: words, sources and their licences, and whether they are on this machine."""
    from minigpt_edge.data.domains import list_domains, load_domain

    if context.invoked_subcommand:
        return
    found = [load_domain(name) for name in list_domains()]
    rows = [_row(domain, name) for domain in found for name in domain.sources]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    for domain in found:
        words = f", {round(domain.words, -3):,} words" if domain.words else ""
        click.echo(f"{click.style(domain.name, bold=True)}  {domain.title}{words}")
        for name in domain.sources:
            row = _row(domain, name)
            how = "" if row["default"] else f" (only with --source {name})"
            click.echo(f"    {row['from']}, {row['here']}{how}")
            click.echo(f"        {row['licence'] or 'licence not stated'}")
    click.echo(
        "\nWhat is not here yet is fetched when it is needed; to have it before, offline later:\n"
        "    minigpt-edge domains fetch NAME"
    )


def _row(domain: Any, name: str) -> dict[str, Any]:
    from minigpt_edge.data.sources import HubSource, PackageSource
    from minigpt_edge.stages.packages import cache_dir, is_here

    source = domain.sources[name]
    origin = getattr(source, "path", "")
    here = "here" if Path(origin).expanduser().exists() else "missing"
    if isinstance(source, PackageSource):
        origin = source.package
        there = is_here(source.package, source.sha256, source.members, cache_dir())
        here = "here" if there else "not here yet"
    if isinstance(source, HubSource):
        origin, here = source.dataset, "on the hub"
    return {
        "name": domain.name,
        "about": domain.title,
        "words": domain.words,
        "task": domain.task,
        "questions": list(domain.questions),
        "source": name,
        "default": name in domain.default,
        "from": origin,
        "licence": source.licence,
        "here": here,
    }


@domains.command()
@click.argument("name")
@click.option("--source", help="Which of its sources, such as hub [default: the ones that need no hub].")
def fetch(name: str, source: str | None) -> None:
    """Get the text and the question sets of the domain NAME, so that it works offline from now on."""
    from minigpt_edge.data import tasks
    from minigpt_edge.data.domains import load_domain

    domain = load_domain(name)
    for one in domain.chosen(source):
        texts, about = one.read(offline=False).texts, one.about()
        where = about.get("package") or about.get("dataset") or about.get("path")
        click.echo(f"{where}: {len(texts):,} documents")
    for question_set in domain.questions:
        task = tasks.get_task(question_set)
        items = tasks.load_items(task, hub=source == "hub")
        click.echo(f"{question_set}: {len(items):,} questions")


@domains.command()
@click.argument("file", type=click.Path(path_type=Path))
def add(file: Path) -> None:
    """Check a domain FILE (NAME.toml) and keep it: `build --domain NAME` then knows it."""
    from minigpt_edge.data.domains import add_domain, own_domains

    domain = add_domain(file)
    click.echo(f"{domain.name}: {domain.title}, kept as {own_domains() / file.name}")
