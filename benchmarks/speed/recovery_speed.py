"""Tokens per second of recovery beside an earlier checkout's, on one pruned model, in turns.

    python benchmarks/speed/recovery_speed.py --before CHECKOUT [--domain NAME] [--threads N] [--rounds N]

Both trees run their own `recover`, with their own steps and teacher, in a process each of this environment,
and stop after SECONDS of steps. Today's recovery is taught on the windows that pruning calibrated on, the
earlier one to its end, so "whole" is the rate over all of the default's tokens. Writes
benchmarks/results/recovery_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lib.bench import Bench, opened
from benchmarks.lib.results import RESULTS, write_result

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 45.0  # of steps that count,
FIRST = 2  # after so many that do not
ROUNDS = 3
CHILD = """
import dataclasses, json, sys
from pathlib import Path
from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
from minigpt_edge.recover.recover import recover
from minigpt_edge.recover.teacher import Teacher

given = json.load(sys.stdin)
known = {"windows": given["windows"], "states": Path(given["states"])}
known = {one.name: known[one.name] for one in dataclasses.fields(Teacher) if one.name in known}
teacher = Teacher(Path(given["base"]), tuple(given["tokens"]), given["share"], **known)
config = RecoverConfig(
    given["recover_tokens"], teacher=teacher if given["taught"] else None, threads=given["threads"]
)

class Enough(Exception):
    pass

steps = []

def follow(entry):
    if "loss" not in entry:
        return
    steps.append((entry["tokens"], entry["tokens_per_second"]))
    rows = [(b[0] - a[0], b[1]) for a, b in zip(steps[given["first"] - 1 :], steps[given["first"] :])]
    if sum(tokens / rate for tokens, rate in rows) > given["seconds"]:
        raise Enough(sum(tokens for tokens, _ in rows) / sum(tokens / rate for tokens, rate in rows))

try:
    recover(
        Path(given["checkpoint"]), Path(given["out"]), TrainingTexts.of(Path(given["corpus"])), config,
        before=given["before"], on_progress=follow,
    )
except Enough as rate:
    print(json.dumps(rate.args[0]))
"""


def rate(tree: Path, given: dict[str, Any]) -> float:
    """Tokens per second of a tree's recovery."""
    paths = os.pathsep.join(str(tree / part) for part in (".", "export", "runtime"))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps({**given, "out": folder}),
            env={**os.environ, "PYTHONPATH": paths},
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if done.returncode or not done.stdout.strip():
        raise SystemExit(f"{tree}: {done.stderr[-2000:] or 'recovery ended before there were enough steps'}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def job(bench: Bench) -> dict[str, Any]:
    """What both are given: the pruned model of the default build."""
    from minigpt_edge.models.dense_states import DENSE_STATES
    from minigpt_edge.prune.context import CHECKPOINT, PLAN
    from minigpt_edge.prune.plan import read_plan
    from minigpt_edge.prune.settings import WINDOW

    pruned, recipe = bench.prune(sparsity=0.42), bench.recipe
    return {
        "base": str(bench.base.path),
        "checkpoint": str(pruned.path / CHECKPOINT),
        "states": str(pruned.path / DENSE_STATES),
        "tokens": read_plan(pruned.path / PLAN).tokens,
        "corpus": str(bench.text.path),
        "before": pruned.metrics["quality"],
        "windows": recipe.calibration_tokens // WINDOW,
        "share": recipe.distill,
        "recover_tokens": recipe.recover_tokens,
        "threads": recipe.threads,
        "seconds": SECONDS,
        "first": FIRST,
    }


def main() -> None:
    """Measure in turns, write the result."""
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="Tokens per second of recovery, then and now.")
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="an earlier checkout")
    parser.add_argument("--domain", default="economics")
    parser.add_argument("--threads", type=int, default=all_cores())
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    bench = opened(given.threads, domain=given.domain)
    with bench.log, tempfile.TemporaryDirectory() as compiled:
        task = job(bench)
        sides = {"before": (given.before.resolve(), True), "taught": (ROOT, True), "untaught": (ROOT, False)}
        rounds: list[dict[str, float]] = []
        for number in range(given.rounds):
            found = {}
            for name, (tree, taught) in sides.items():
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(compiled) / name)
                found[name] = rate(tree, {**task, "taught": taught})
            share = min(1.0, bench.recipe.calibration_tokens / bench.recipe.recover_tokens)
            found["whole"] = 1 / (share / found["taught"] + (1 - share) / found["untaught"])
            found["ratio"] = found["whole"] / found["before"]
            rounds.append(found)
            bench.log.line("round", f"{number + 1}: {json.dumps({k: round(v, 2) for k, v in found.items()})}")
    command = ["git", "-C", str(given.before), "rev-parse", "HEAD"]
    before = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    ratios = [one["ratio"] for one in rounds]
    write_result(
        RESULTS / "recovery_speed.json",
        {
            "domain": given.domain,
            "model": bench.base.name,
            "threads": given.threads,
            "before": before,
            "rounds": rounds,
            "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        },
    )
    bench.log.line("written", "recovery_speed.json")


if __name__ == "__main__":
    main()
