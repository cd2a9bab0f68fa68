"""Time of a whole build beside busy processes ÷ that of one on a machine that does nothing else.

    python benchmarks/speed/busy_build.py [--domain NAME] [--model NAME] [--tokens N]
        [--rounds N]

A short build from the command line, every stage made anew, alone and beside one busy process on each core,
in turns. Writes benchmarks/results/busy_build.json with the seconds of each stage. On Linux, which lets a
process be tied to a core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.lib.results import RESULTS, write_result

ROOT = Path(__file__).resolve().parents[2]


def spin(core: int) -> None:
    """Keep one core busy for ever."""
    os.sched_setaffinity(0, {core})
    while True:
        sum(range(10_000))


@contextmanager
def busy(cores: list[int]) -> Iterator[None]:
    """One busy process on each of these cores."""
    others = [multiprocessing.Process(target=spin, args=(core,), daemon=True) for core in cores]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def build(domain: str, model: str, tokens: int) -> dict[str, Any]:
    """Seconds of a build, whole and by stage."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    with tempfile.TemporaryDirectory() as folder:
        amounts = ["--calibration-tokens", str(tokens), "--recover-tokens", str(tokens)]
        places = ["--work", f"{folder}/work", "--out", f"{folder}/out"]
        asked = ["build", "--domain", domain, "--model", model, *amounts, *places]
        command = [sys.executable, "-m", "minigpt_edge", *asked]
        begun = time.monotonic()
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": paths}, cwd=folder, capture_output=True, text=True
        )
        seconds = time.monotonic() - begun
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        made = [json.loads(path.read_text()) for path in Path(folder, "work").glob("*/manifest.json")]
    stages: Counter[str] = Counter()
    for one in made:
        stages[one["stage"]] += one["seconds"]
    return {"seconds": seconds, "stages": dict(stages)}


def main() -> None:
    """Measure in turns, write the result."""
    parser = argparse.ArgumentParser(description="A build beside busy processes.")
    parser.add_argument("--domain", default="law")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=16_384, help="of calibration, and of recovery")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    rounds = []
    for _ in range(given.rounds):
        alone = build(given.domain, given.model, given.tokens)
        with busy(cores):
            beside = build(given.domain, given.model, given.tokens)
        rounds.append({"alone": alone, "busy": beside, "ratio": beside["seconds"] / alone["seconds"]})
        print(json.dumps(rounds[-1], indent=2), flush=True)
    ratios = [one["ratio"] for one in rounds]
    ratio = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    about = {
        "domain": given.domain,
        "model": Path(given.model).name,
        "tokens": given.tokens,
        "busy_processes": len(cores),
    }
    write_result(RESULTS / "busy_build.json", {**about, "rounds": rounds, "ratio": ratio})


if __name__ == "__main__":
    main()
