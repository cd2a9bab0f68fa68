"""Time of calibration and pruning against a bare forward pass over the same tokens, in one process.

    python benchmarks/speed/calibration_speed.py [--calibration-tokens N]

The bare pass is the dense model's own forward, with logits, without gradients, in the same micro-batches and
the dtype that pruning multiplies in. Writes benchmarks/results/calibration_speed.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import opened
from benchmarks.lib.results import RESULTS, write_result

RESULT = RESULTS / "calibration_speed.json"


def main() -> None:
    """Measure and write the result."""
    import torch

    from minigpt_edge.data import corpus
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.models.precision import compute_dtype
    from minigpt_edge.prune.context import MICRO_BATCH_TOKENS, PruneInputs
    from minigpt_edge.prune.methods.registry import pruner_of
    from minigpt_edge.prune.prepare import calibration_windows, prepare
    from minigpt_edge.prune.result import write_pruned
    from minigpt_edge.prune.settings import WINDOW, prune_settings
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration-tokens", type=int, default=Recipe.calibration_tokens)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    bench = opened(given.threads)
    base, documents = bench.base, corpus.read_split(bench.text.path, "train")
    settings = prune_settings(bench.context(calibration_tokens=given.calibration_tokens).recipe)
    low = compute_dtype() is torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        torch.set_num_threads(given.threads)
        torch.set_flush_denormal(True)
        model: Any = load_model(base.path)
        windows = calibration_windows(documents, base.path, base.document_start, settings)
        batches = windows.split(MICRO_BATCH_TOKENS // WINDOW)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            model(batches[0], use_cache=False)
            begun = time.monotonic()
            for batch in batches:
                model(batch, use_cache=False)
            bare = time.monotonic() - begun
        marks: dict[str, float] = {}

        def mark(what: str, done: int, total: int) -> None:
            marks[what] = time.monotonic() - begun

        begun = time.monotonic()
        inputs = PruneInputs(base.path, base.fingerprint, bench.text.path, settings, on_progress=mark)
        context = prepare(inputs, out)
        metrics = write_pruned(context, pruner_of(settings).apply(context))
        spent = time.monotonic() - begun
    result = {
        "tokens": windows.numel(),
        "bare_forward_seconds": round(bare, 2),
        "calibration_and_pruning_seconds": round(spent, 2),
        "ratio": round(spent / bare, 3),
        "finished_at_seconds": {name: round(at, 2) for name, at in marks.items()},
        "sparsity": metrics["sparsity"],
        "threads": given.threads,
    }
    write_result(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
