"""Stages appear whole or not at all, are reused by content, and refuse what was changed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigpt_edge.stage import locked, run_stage
from minigpt_edge_runtime.errors import EdgeError

CODE = ("minigpt_edge.stage",)


def make(out: Path) -> dict[str, Any]:
    (out / "data.txt").write_text("made")
    return {"figure": 3}


def run(work: Path, **changed: Any) -> Any:
    given: dict[str, Any] = {"settings": {"a": 1}, "inputs": {"x": "0"}, "code": CODE, "make": make}
    return run_stage(work, "demo", **{**given, **changed})


def test_the_same_stage_is_reused_and_another_is_not(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert (first.reused, second.reused) == (False, True)
    assert second.metrics == {"figure": 3} and second.digest == first.digest
    assert run(tmp_path, settings={"a": 2}).path != first.path
    assert run(tmp_path, inputs={"x": "1"}).path != first.path


def test_a_failed_stage_leaves_no_directory(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        make(out)
        raise EdgeError("no")

    with pytest.raises(EdgeError):
        run(tmp_path, make=fail)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".partial")] == []
    assert run(tmp_path).reused is False


def test_only_resumable_stages_find_what_was_left(tmp_path: Path) -> None:
    def interrupted(out: Path) -> dict[str, Any]:
        (out / "half.txt").write_text("half")
        raise KeyboardInterrupt

    seen: list[bool] = []

    def look(out: Path) -> dict[str, Any]:
        seen.append((out / "half.txt").exists())
        return {}

    for resumable in (False, True):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, make=interrupted, settings={"r": resumable})
        run(tmp_path, make=look, settings={"r": resumable}, resumable=resumable)
    assert seen == [False, True]


@pytest.mark.parametrize("damage", ["change", "delete", "add", "manifest"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    stage = run(tmp_path)
    if damage == "change":
        (stage.path / "data.txt").write_text("other")
    elif damage == "delete":
        (stage.path / "data.txt").unlink()
    elif damage == "add":
        (stage.path / "more.txt").write_text("x")
    else:
        (stage.path / "manifest.json").write_text("{")
    with pytest.raises(EdgeError, match=r"damaged|changed") as caught:
        run(tmp_path)
    assert caught.value.hint is not None and str(stage.path) in caught.value.hint


def test_two_builds_do_not_share_a_work_directory(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(EdgeError, match="another build"), locked(tmp_path):
        pass
