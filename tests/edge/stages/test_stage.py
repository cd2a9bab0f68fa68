"""Stages appear whole or not at all, are cached by content, and refuse what was changed by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minigpt_edge.stages.stage import StageSpec, locked, run_stage
from minigpt_edge_runtime.errors import EdgeError

CODE = ("minigpt_edge.stages.stage",)


def make(out: Path) -> dict[str, Any]:
    (out / "data.txt").write_text("made")
    return {"figure": 3}


def run(work: Path, **changed: Any) -> Any:
    made_by = changed.pop("make", make)
    given: dict[str, Any] = {"settings": {"a": 1}, "inputs": {"x": "0"}, "code": CODE, **changed}
    return run_stage(work, StageSpec("demo", **given), made_by)


@pytest.mark.whole
def test_the_same_stage_is_cached_and_another_is_not(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert second.metrics == {"figure": 3} and second.digest == first.digest
    assert run(tmp_path, settings={"a": 2}).path != first.path
    assert run(tmp_path, inputs={"x": "1"}).path != first.path


def test_a_failed_stage_leaves_no_directory(tmp_path: Path) -> None:
    def fail(out: Path) -> dict[str, Any]:
        make(out)
        raise EdgeError("no")

    with pytest.raises(EdgeError):
        run(tmp_path, make=fail)
    assert not [path for path in tmp_path.glob("demo-*") if path.suffix != ".partial"]
    assert run(tmp_path).cached is False


@pytest.mark.whole
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


@pytest.mark.whole
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


@pytest.mark.whole
def test_two_processes_that_need_one_stage_make_it_once(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from minigpt_edge.stages.stage import StageSpec, run_stage\n"
        "def make(out):\n"
        "    time.sleep(2)\n"
        "    with open('made', 'a') as file: file.write('x')\n"
        "    return {}\n"
        "stage = run_stage(pathlib.Path('work'), StageSpec('demo', {}, {}, ()), make)\n"
        "print(stage.cached)\n"
    )
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(str(root / part) for part in (".", "export", "runtime"))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=60) for process in started]
    assert sorted(out.strip() for out, _ in said) == ["False", "True"], said
    assert (tmp_path / "made").read_text() == "x"
    assert sum("waiting for it" in log for _, log in said) == 1


def test_what_must_not_wait_is_refused(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "out"),
        pytest.raises(EdgeError, match="busy"),
        locked(tmp_path, "out", busy="busy"),
    ):
        pass
    with locked(tmp_path, "out"), locked(tmp_path, "other", busy="busy"):
        pass
