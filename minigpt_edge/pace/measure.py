"""How fast this machine reads a token with the dense model, and trains the pruned one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from minigpt_edge.recover.config import Progress, TrainingTexts

Clock = Callable[[], float]
WINDOWS, PASSES = 8, 2  # of the forward pass: windows read at once, and how often after the first time
STEPS = 12  # of the trial; the first is not counted


class _Enough(Exception):
    """The trial of recovery has shown what it is for."""


def forward_pace(
    checkpoint: Path, texts: TrainingTexts, *, window: int, threads: int, clock: Clock = time.perf_counter
) -> dict[str, float]:
    """{"token_seconds"} of a forward pass over training text with losses, the mean of PASSES.

    Raises:
        EdgeError: damaged input, or less text than a window.
    """
    import torch

    from minigpt_edge.data.corpus import read_documents
    from minigpt_edge.data.training_windows import TrainingWindows
    from minigpt_edge.data.windows import read_texts
    from minigpt_edge.evaluation.perplexity import sum_nll
    from minigpt_edge.models.checkpoint import is_large
    from minigpt_edge.models.forward import load_fast, read_tokenizer

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    start, _ = read_texts(texts.validation)
    documents = read_documents(texts.train)
    cut = TrainingWindows(documents, read_tokenizer(checkpoint), start, length=window - 1, seed=0)
    sequences = cut.take(WINDOWS).tolist()
    model = load_fast(checkpoint, lazy=is_large(checkpoint))
    sum_nll(model, sequences)  # memory is touched, and products choose their kernels
    took = []
    for _ in range(PASSES):
        begun = clock()
        sum_nll(model, sequences)
        took.append(clock() - begun)
    return {"token_seconds": statistics.mean(took) / (WINDOWS * window)}


def training_pace(
    recover: Callable[[Progress], Any],
    clock: Clock = time.perf_counter,
    on_step: Progress = lambda entry: None,
) -> dict[str, float]:
    """{"step_seconds", "evaluation_seconds", "compile_seconds", "other_seconds"} of a recovery, which is
    ended at its first evaluation.

    Args:
        recover: starts it, given its `on_progress`; it knows how good the model is before.
    """
    begun = clock()
    marks: dict[str, float] = {}
    steps: list[float] = []

    def stamp(entry: dict[str, Any]) -> None:
        now = clock()
        if "message" in entry:
            marks.setdefault("compiling", now)
        elif "bits_per_byte" not in entry:
            steps.append(now)
            on_step(entry)
        elif entry["step"]:
            marks["evaluated"] = now
            raise _Enough

    with suppress(_Enough):
        recover(stamp)
    seconds = statistics.median(b - a for a, b in zip(steps, steps[1:], strict=False))
    ready = steps[0] - seconds
    compiling = marks.get("compiling", ready)
    return {
        "step_seconds": seconds,
        "evaluation_seconds": marks["evaluated"] - steps[-1],
        "compile_seconds": ready - compiling,
        "other_seconds": compiling - begun,
    }
