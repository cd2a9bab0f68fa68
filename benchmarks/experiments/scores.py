"""Three scores with the same refit, sizes and data: validation perplexity right after pruning.

    python benchmarks/experiments/scores.py [--calibration-tokens N]

Equal widths and the least-squares refit, so that only the choice of units differs. Steps are finished
stages, shared with `minigpt-edge build`. Writes benchmarks/results/scores.json.
"""

from __future__ import annotations

import argparse

from benchmarks.lib.bench import PUBLISHED_TOKENS, opened, write
from benchmarks.lib.results import RESULTS
from minigpt_edge.recipe import PAPER_SPARSITY
from minigpt_edge.stages.parallel import all_cores

SCORES = ("contextual", "wanda", "least_squares")


def main() -> None:
    """Prune once per score and write the quality that the stages measured on the validation windows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calibration-tokens", type=int, default=PUBLISHED_TOKENS)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    bench = opened(given.threads)
    shared = {"widths": "equal", "refit": True, "calibration_tokens": given.calibration_tokens}
    with bench.log:
        stages = {method: bench.prune(method=method, **shared) for method in SCORES}
    found = {method: stage.metrics["quality"] for method, stage in stages.items()}
    about = {"calibration_tokens": given.calibration_tokens, "sparsity": PAPER_SPARSITY, "widths": "equal"}
    write(RESULTS / "scores.json", bench, {**about, "dense": bench.dense.metrics, "methods": found})


if __name__ == "__main__":
    main()
