"""Builds with `--time` on a tiny model and a fake clock: what is chosen, kept, repeated, and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_build import write_corpus, write_model

from minigpt_edge import pipeline
from minigpt_edge.pipeline import Built
from minigpt_edge.recipe import recipe_of
from minigpt_edge.stages.console import Log
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_json

pytestmark = pytest.mark.whole

SMALL: dict[str, Any] = {"threads": 1, "min_count": 1, "sparsity": 0.2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, corpus/ and the stages of all builds of this module."""
    folder = tmp_path_factory.mktemp("time")
    write_model(folder / "model", write_corpus(folder / "corpus"), blocks=2)
    return folder


class Machine(Log):
    """A log and a clock: each pass of the dense model and each step of training takes so many seconds."""

    def __init__(self, *, reading: float = 0.05, training: float = 80.0) -> None:
        super().__init__()
        self.takes, self.now, self.tick = {"model": reading, "recovery": training}, 0.0, 0.0

    def step(self, what: str, done: float = 0, total: float | None = None, detail: str = "") -> None:
        self.tick = self.takes.get(what.split()[-1], self.tick) if what.startswith("time:") else self.tick
        super().step(what, done, total, detail)

    def clock(self) -> float:
        """It is later each time that it is looked at."""
        self.now += self.tick
        return self.now


def build(place: Path, out: str, time: str, machine: Machine, **options: Any) -> tuple[Built, str]:
    """A build on such a machine, and its log."""
    recipe = recipe_of(
        corpus=[str(place / "corpus")],
        model=str(place / "model"),
        out=place / out,
        time=time,
        **{
            "work": place / "work",
            "targets": ["gguf-q8"],
            "lora_rank": 2,
            "no_baseline": True,
            **SMALL,
            **options,
        },
    )
    with machine, machine.console.capture() as said:
        built = pipeline.build(recipe, machine, clock=machine.clock)
    return built, " ".join(said.get().split())


def recovered(place: Path) -> set[str]:
    return {path.name for path in (place / "work").glob("recover-*") if path.suffix != ".partial"}


def test_a_time_becomes_tokens_that_stay(place: Path) -> None:
    built, said = build(place, "out", "1h", Machine())
    report = built.report
    budget = report.time
    assert budget.asked == 3600
    # The parts fill the time, to a step.
    assert budget.training_tokens_per_second == pytest.approx(2048 / 80)
    assert 3600 - 80 <= sum(budget.seconds.values()) <= 3600
    assert report.recovery.tokens == report.recipe["recover_tokens"] == budget.recovery_tokens
    assert report.recipe["calibration_tokens"] == budget.calibration_tokens
    assert budget.passes == pytest.approx(budget.recovery_tokens / (report.corpus.train_tokens or 0))
    assert f"1h: {budget.calibration_tokens:,} calibration tokens" in said
    assert f"{budget.recovery_tokens:,} recovery tokens at 26 tokens/s" in said
    assert "passes over the text" in said and "for files and measurements" in said
    assert {stage.name for stage in report.stages} >= {"pace-dense", "prune", "pace-recovery", "recover"}
    assert json.loads((place / "out" / "report.json").read_text())["time"] == budget.to_json()
    page = (place / "out" / "report.html").read_text()
    assert f"{budget.recovery_tokens:,} of recovery" in page

    # The same again on a machine that has become slower: nothing is to be done.
    again, _ = build(place, "out", "1h", Machine(reading=0.1, training=200.0))
    assert again.unchanged and again.report.time == budget
    # More time is more tokens, at the speed that was measured the first time.
    longer, _ = build(place, "longer", "1h30m", Machine(training=200.0))
    assert longer.report.time.recovery_tokens == pytest.approx(
        budget.recovery_tokens + 1800 / 80 * 2048, abs=2 * 2048
    )


def test_an_interrupted_build_goes_on_with_its_tokens(place: Path) -> None:
    whole, _ = build(place, "whole", "1h", Machine())
    weights = (whole.checkpoint / "model.safetensors").read_bytes()
    shutil.rmtree(whole.checkpoint)

    class Interrupted(Machine):
        def recovery(self, state: dict[str, Any]) -> None:
            if state.get("step") == 3:
                raise KeyboardInterrupt
            super().recovery(state)

    with pytest.raises(KeyboardInterrupt):
        build(place, "parts", "1h", Interrupted(training=120.0))
    assert (
        not whole.checkpoint.exists()
        and whole.checkpoint.with_name(f"{whole.checkpoint.name}.partial").exists()
    )
    parts, _ = build(place, "parts", "1h", Machine(training=50.0))
    assert parts.checkpoint == whole.checkpoint and parts.report.time == whole.report.time
    assert (parts.checkpoint / "model.safetensors").read_bytes() == weights


def test_a_model_that_is_good_enough_already_still_has_a_pace(place: Path) -> None:
    built, _ = build(place, "dense", "1h", Machine(), recover_until="dense", seed=1)
    assert built.report.recovery.stopped == "perplexity reached"
    assert built.report.time.training_tokens_per_second == pytest.approx(2048 / 80)


@pytest.mark.parametrize(("reading", "training"), [(60.0, 80.0), (0.05, 200.0)])
def test_too_short_for_a_slow_machine(place: Path, reading: float, training: float) -> None:
    """Before pruning by the dense model's speed, after it by the pruned one's."""
    machine, options = Machine(reading=reading, training=training), {"sparsity": 0.1, "threads": 2}
    shutil.rmtree(place / "slow-work", ignore_errors=True)
    with pytest.raises(EdgeError, match="--time 1h is too short") as caught:
        build(place, "slow", "1h", machine, **options, work=place / "slow-work")
    assert "give --time" in str(caught.value.hint)
    assert bool(list((place / "slow-work").glob("prune-*"))) == (reading < 1)
    assert not (place / "slow").exists()


def test_a_build_that_took_too_long_says_so(place: Path) -> None:
    """By what the manifests of its stages say."""
    built, said = build(place, "out", "1h", Machine())
    assert "warning" not in said
    work = place / "late-work"
    shutil.copytree(place / "work", work)
    manifest = work / built.checkpoint.name / "manifest.json"
    content = {**json.loads(manifest.read_text()), "seconds": 5400.0}
    del content["manifest_sha256"]
    manifest.write_text(json.dumps({**content, "manifest_sha256": sha256_json(content)}))
    _, said = build(place, "late", "1h", Machine(), work=work)
    assert "warning: the build took 1h3" in said and "where 1h was asked for" in said


def test_a_dry_run_plans_for_the_time(place: Path) -> None:
    recipe = recipe_of(
        corpus=[str(place / "corpus")],
        model=str(place / "model"),
        work=place / "work",
        time="1h",
        **SMALL,
    )
    machine = Machine()
    with machine, machine.console.capture() as said:
        plan = pipeline.dry_run(recipe, machine)
    assert plan["sparsity"] == pytest.approx(0.2, abs=0.01)
    assert "1h: " in said.get() and "calibration tokens" in said.get()
