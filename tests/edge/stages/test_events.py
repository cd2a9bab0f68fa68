"""Runs leave their events behind, and tell them as JSON where that is asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from minigpt_edge.stages import events
from minigpt_edge.stages.console import Log
from minigpt_edge_runtime.errors import EdgeError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_is_told_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Log(log_json=True) as log:
        log.line("model", "tiny, from /[old]/[/x], [1, 2]", warning=True)
        folder = log.events.to_run_directory(tmp_path)
        for done in range(1000):
            log.step("prune", done, 1000)
        log.recovery({"step": 1, "steps": 2, "tokens": 10, "loss": 2.5})
        log.line("prune", "done", 1.5, cached=True)
    told = lines(folder / "events.jsonl")
    assert told == [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["event"] for one in told] == ["stage", "progress", "recovery", "stage", "done"]
    assert (
        told[0]["text"] == "warning: tiny, from /[old]/[/x], [1, 2]"
        and told[3]["seconds"] == 1.5
        and told[3]["reused"] is True
    )


@pytest.mark.parametrize(
    ("error", "event"), [(EdgeError("no text", "give some"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_how_it_ended_is_told(tmp_path: Path, error: BaseException, event: str) -> None:
    with pytest.raises(type(error)), Log(quiet=True) as log:
        folder = log.events.to_run_directory(tmp_path)
        raise error
    (told,) = lines(folder / "events.jsonl")
    assert told["event"] == event
    if event == "failed":
        assert (told["message"], told["hint"]) == ("no text", "give some")


def test_only_the_latest_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 3)
    for number in range(6):
        monkeypatch.setattr(events.os, "getpid", lambda number=number: number)
        events.Events().to_run_directory(tmp_path)
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_no_name_is_taken_for_markup() -> None:
    log = Log()
    log.console.file = io.StringIO()
    log.line("model", "tiny, from /[old]/[/x]", warning=True)
    assert "warning: tiny, from /[old]/[/x]" in log.console.file.getvalue()


def test_without_a_terminal_long_steps_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.console.file = io.StringIO()
    monkeypatch.setattr("minigpt_edge.stages.console.PLAIN_EVERY", 0.0)
    log.step("prune", 25, 100, "loss 1.0")
    assert "prune 25% loss 1.0" in log.console.file.getvalue()
