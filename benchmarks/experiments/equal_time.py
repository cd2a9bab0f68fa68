"""The dense model fine-tuned for as long as pruning and recovery take, beside what they give.

    python benchmarks/experiments/equal_time.py [--threads N]

A short training tells how many tokens the dense model reads in that time. On a machine that does nothing
else: times decide the result. Steps are stages, shared with every_domain.py. Writes
benchmarks/results/equal_time.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.experiments.every_domain import SPARSITY
from benchmarks.lib.bench import Bench, opened, write
from benchmarks.lib.results import RESULTS

TRIAL = 61_440  # tokens; the training step is compiled from 60,000 on


def run(bench: Bench) -> dict[str, Any]:
    """Seconds and quality of both."""
    pruned = bench.prune(sparsity=SPARSITY)
    ours = bench.recover(pruned, sparsity=SPARSITY)
    spent = pruned.manifest["seconds"] + ours.manifest["seconds"]
    dense = bench.base.path, bench.base.fingerprint
    trial = bench.train(*dense, TRIAL)
    training = trial.metrics["training_seconds"]
    beside = trial.manifest["seconds"] - training  # compiling and evaluations
    tokens = int((spent - beside) * trial.metrics["tokens"] / training)
    trained = bench.train(*dense, tokens)
    rows = {
        "ours": {
            "seconds": spent,
            "pruning_seconds": pruned.manifest["seconds"],
            "tokens": ours.metrics["tokens"],
            "sparsity": pruned.metrics["sparsity"],
            "test": bench.test(ours.path, ours.digest),
        },
        "dense": {
            "seconds": trained.manifest["seconds"],
            "tokens": trained.metrics["tokens"],
            "test": bench.test(trained.path, trained.digest),
        },
    }
    ratio = rows["ours"]["test"]["bits_per_byte"] / rows["dense"]["test"]["bits_per_byte"]
    return {**rows, "bits_ratio": ratio}


def main() -> None:
    """Run it, write the result."""
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="The dense model fine-tuned for as long.")
    parser.add_argument("--threads", type=int, default=all_cores())
    bench = opened(parser.parse_args().threads)
    with bench.log:
        found = run(bench)
    write(RESULTS / "equal_time.json", bench, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
