"""How long `evaluate` takes for 1,000 four-choice questions on a shipped file.

    python benchmarks/speed/evaluate_speed.py MODEL [--questions N] [--threads N]

HellaSwag, and completions of the bundle's own domain. Writes benchmarks/results/evaluate_speed.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.lib.results import RESULTS, write_result

RESULT = RESULTS / "evaluate_speed.json"
TASKS = ("hellaswag", "completion")


def main() -> None:
    """Time both, loading of the questions included."""
    from minigpt_edge.evaluation import run
    from minigpt_edge.evaluation.subject import subject_of
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    subject = subject_of(given.model)
    options = run.Options(limit=given.questions, threads=given.threads)
    rows = []
    with Log() as log:
        for task in TASKS:
            begun = time.perf_counter()
            (found,) = run.evaluate(subject, [task], options, log)["tasks"].values()
            seconds = time.perf_counter() - begun
            assert "sum" in found  # both are questions
            rows.append({"task": task, "questions": found["sum"]["questions"], "seconds": round(seconds, 1)})
    file = {"name": subject.path.name, "bytes": subject.path.stat().st_size}
    result = {"file": file, "threads": given.threads, "rows": rows}
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
