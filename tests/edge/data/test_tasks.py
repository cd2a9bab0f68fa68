"""Question sets: rows as the field prompts them, read from the package, damaged ones refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_questions import WINOGRANDE, write_package

from minigpt_edge.data import tasks
from minigpt_edge.data.tasks import items
from minigpt_edge_runtime.errors import EdgeError, UsageError

ARC = {"query": "Question: Why?\nAnswer:", "choices": ["so", "not", "if"], "gold": 2}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tasks, "package_files", lambda *_, **__: tmp_path)
    return tmp_path


def test_prompts_are_those_of_the_field() -> None:
    boolq = items.boolq({"passage": "Ice floats.", "question": "does ice sink", "answer": False})
    assert boolq == items.Item(("Ice floats.\nQuestion: does ice sink?\nAnswer:",), (" no", " yes"), 0)
    rte = items.rte({"sentence1": "A.", "sentence2": "B.", "label": 1})
    assert rte.pairs == [("A.\nQuestion: B. True or False?\nAnswer:", c) for c in (" True", " False")]
    scene = {"activity_label": "Roof", "ctx_a": "A man [step] sits.", "ctx_b": "he", "label": "1"}
    hella = items.hellaswag({**scene, "endings": ["is  up [title] there", "sings."]})
    assert hella == items.Item(("Roof: A man sits. He",), (" is up. there", " sings."), 1)
    name = items.winogrande(WINOGRANDE)
    assert name.pairs == [(f"Ann thanked Eve since {who}", " helped.") for who in ("Ann", "Eve")]
    assert name.answer == 1
    assert items.arc(ARC) == items.Item(("Question: Why?\nAnswer:",), (" so", " not", " if"), 2)
    hub = {"question": "Why?", "choices": {"text": ["so", "not"], "label": ["1", "2"]}, "answerKey": "2"}
    assert items.arc(hub) == items.Item(("Question: Why?\nAnswer:",), (" so", " not"), 1)
    assert items.openbookqa({**ARC}).contexts == ("Why?",)
    assert items.openbookqa({**hub, "question_stem": "Why?"}).contexts == ("Why?",)
    law = items.mmlu({"subject": "world_law", "question": "Who? ", "choices": list("wxyz"), "answer": 3})
    assert law.contexts[0] == (
        "The following are multiple choice questions (with answers) about world law.\n\n"
        "Who?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    assert law.choices == (" A", " B", " C", " D") and law.answer == 3
    medical = items.medmcqa({"question": "Which?", "opa": 1, "opb": 2, "opc": 3, "opd": 4, "cop": 0})
    assert medical.contexts == ("Question: Which?\nChoices:\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",)


def test_rows_are_read_from_the_package(package: Path) -> None:
    first, second = {**ARC, "id": "a"}, {**ARC, "id": "b", "gold": 0}
    write_package(package, {"winogrande": [WINOGRANDE] * 3}, {"arc_easy": [first, second, first, second]})
    assert tasks.load_items(tasks.get_task("winogrande")) == [items.winogrande(WINOGRANDE)] * 3
    assert [item.answer for item in tasks.load_items(tasks.get_task("arc_easy"))] == [2, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**WINOGRANDE, "answer": "7"}, "answer 6 of 2 choices"),
        ({**WINOGRANDE, "answer": "none"}, "question 0 of winogrande is damaged"),
        ({"sentence": "no options"}, "question 0 of winogrande is damaged"),
    ],
)
def test_damaged_questions_are_refused(package: Path, row: dict[str, Any], message: str) -> None:
    write_package(package, {"winogrande": [row]}, {})
    with pytest.raises(EdgeError, match=message):
        tasks.load_items(tasks.get_task("winogrande"))


def test_damaged_files_and_empty_sets_are_refused(package: Path) -> None:
    write_package(package, {"winogrande": [WINOGRANDE]}, {"arc_easy": []})
    path = package / tasks.get_task("winogrande").members
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EdgeError, match="can't be read"):
        tasks.load_items(tasks.get_task("winogrande"))
    with pytest.raises(EdgeError, match="no questions"):
        tasks.load_items(tasks.get_task("arc_easy"))


def test_unknown_tasks_are_named_with_the_known_ones() -> None:
    assert tasks.get_task("mmlu:anatomy").members.endswith(
        "mmlu_no_train/anatomy/test/data-00000-of-00001.arrow"
    )
    for name in ("triviaqa", "mmlu:../x", "mmlu"):
        with pytest.raises(UsageError, match="no task|no subject"):
            tasks.get_task(name)
