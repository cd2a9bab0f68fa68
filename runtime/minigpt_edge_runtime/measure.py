"""Measure a model file the way a device loads it: speed and memory, or quality on held-out text.

Run as `python -m minigpt_edge_runtime.measure speed|quality …` or through `run_fresh`, each measurement
has a process of its own, so that peak memory is the model's.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from minigpt_edge_runtime.artefact import describe_model
from minigpt_edge_runtime.device import device_info, peak_rss_bytes
from minigpt_edge_runtime.engine import Engine, default_threads, open_engine
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.fresh import run_fresh

__all__ = ["describe_model", "measure_quality", "measure_speed", "percentiles", "run_fresh"]

FORMAT = 1
Sample = TypeVar("Sample")
Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all

INCLUDES = {
    "load_seconds": "header check, reading the weights, context and buffers; the file is in the page cache",
    "ttft_ms": "evaluating the prompt from an empty cache and the greedy pick; not tokenizing, not loading",
    "prefill_tokens_per_second": "evaluating the prompt from an empty cache, logits of its last token",
    "decode_tokens_per_second": "one token at a time from an empty cache, each with its greedy pick",
    "peak_rss_mb": "the whole process: interpreter, libraries, weights, cache, buffers; MB = 1,000,000 bytes",
}


def measure_speed(
    path: Path | str,
    *,
    threads: int | None = None,
    prompt_tokens: int = 512,
    generate_tokens: int = 64,
    first_token_prompt: int = 128,
    repeat: int = 5,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a model file in this process (for true memory figures use `run_fresh`).

    Prompts are seeded pseudo-random token ids, as llama-bench uses; a warm-up of each kind is not counted.

    Returns:
        The headline figures (medians over `repeat`; "includes" says of what), their raw samples in seconds,
        the settings, the model's, runtime's and device's description.

    Raises:
        EdgeError: the file can't be run, or its context is too short for the prompts.
    """
    counts = {
        "prompt_tokens": prompt_tokens,
        "generate_tokens": generate_tokens,
        "first_token_prompt": first_token_prompt,
        "repeat": repeat,
    }
    _need_positive(**counts)
    path, threads = Path(path), threads or default_threads()
    model = describe_model(path)
    context = context_length or max(prompt_tokens, first_token_prompt, generate_tokens + 1)
    report = _reporter(progress, "speed", 3 * (repeat + 1))
    rss_before = peak_rss_bytes()
    load_seconds, engine = _timed_load(path, context, threads)
    with engine:
        samples = _speed_samples(engine, report, **counts)
        peak = peak_rss_bytes()
        runtime = _runtime(engine.description())
    samples["load_seconds"] = [load_seconds, *(_reload(path, context, threads) for _ in range(repeat - 1))]
    return {
        "format": FORMAT,
        "kind": "speed",
        "model": model,
        **_headline(samples, prompt_tokens, generate_tokens),
        "peak_rss_mb": _megabytes(peak),
        "rss_before_load_mb": _megabytes(rss_before),
        "threads": threads,
        "settings": {**counts, "context_length": context},
        "samples": samples,
        "includes": INCLUDES,
        "runtime": runtime,
        "device": device_info(),
    }


def _headline(samples: Mapping[str, list[Any]], prompt_tokens: int, generate_tokens: int) -> dict[str, Any]:
    decode, median = samples["decode_seconds"], statistics.median
    return {
        "load_seconds": round(median(samples["load_seconds"]), 4),
        "ttft_ms": percentiles([1000 * seconds for seconds in samples["ttft_seconds"]]),
        "prefill_tokens_per_second": round(prompt_tokens / median(samples["prefill_seconds"]), 2),
        "decode_tokens_per_second": round(generate_tokens / median(map(sum, decode)), 2),
        "itl_ms": percentiles([1000 * seconds for run in decode for seconds in run]),
    }


def _speed_samples(
    engine: Engine,
    report: Callable[[], None],
    *,
    prompt_tokens: int,
    generate_tokens: int,
    first_token_prompt: int,
    repeat: int,
) -> dict[str, list[Any]]:
    """Seconds to the first token, of the prefill, and (a list per run) of each decoded token."""
    import numpy as np

    longest = max(first_token_prompt, prompt_tokens)
    prompt = np.random.default_rng(0).integers(0, engine.vocab_size, longest).tolist()
    return {
        "ttft_seconds": _samples(repeat, report, lambda: _prefill(engine, prompt[:first_token_prompt])),
        "prefill_seconds": _samples(repeat, report, lambda: _prefill(engine, prompt[:prompt_tokens])),
        "decode_seconds": _samples(repeat, report, lambda: _decode(engine, generate_tokens)),
    }


def _megabytes(size: int | None) -> float | None:
    return None if size is None else round(size / 1e6, 1)


def measure_quality(
    path: Path | str,
    texts: Path | str | dict[str, Any],
    *,
    threads: int | None = None,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score held-out windows, each on its own from the document-start token.

    Args:
        texts: a texts.json or its content: {document_start, split, windows: [{text, bytes, base_tokens}]}.
        context_length: tokens of the context; by default what the longest window needs.

    Returns:
        nll (nats), bits_per_byte with its standard error over windows, perplexity_per_base_token, and
        per window nll, tokens, bytes and base_tokens.

    Raises:
        EdgeError: texts is damaged, a window exceeds the context, or the vocabulary loses bytes of a text.
    """
    from minigpt_edge_runtime.scoring import read_windows, score_windows, summarize

    path, threads = Path(path), threads or default_threads()
    model = describe_model(path)
    content = read_json(Path(texts)) if isinstance(texts, str | Path) else texts
    windows = read_windows(content)
    report = _reporter(progress, "quality", len(windows))
    began = time.perf_counter()
    scored, runtime = score_windows(
        path, content.get("document_start"), windows, threads, context_length, report
    )
    return {
        "format": FORMAT,
        "kind": "quality",
        "model": model,
        **summarize(scored),
        "split": content.get("split"),
        "document_start": content.get("document_start"),
        "threads": threads,
        "seconds": round(time.perf_counter() - began, 3),
        "per_window": scored,
        "runtime": _runtime(runtime),
        "device": device_info(),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 of the values, linearly interpolated."""
    import numpy as np

    return {f"p{q}": round(float(np.percentile(values, q)), 4) for q in (50, 90, 99)}


def _timed_load(path: Path, context: int, threads: int) -> tuple[float, Engine]:
    began = time.perf_counter()
    engine = open_engine(path, context, threads)
    return time.perf_counter() - began, engine


def _reload(path: Path, context: int, threads: int) -> float:
    seconds, engine = _timed_load(path, context, threads)
    engine.close()
    return seconds


def _prefill(engine: Engine, prompt: list[int]) -> float:
    engine.reset()
    began = time.perf_counter()
    int(engine.eval(prompt).argmax())
    return time.perf_counter() - began


def _decode(engine: Engine, count: int) -> list[float]:
    """Seconds of each of `count` greedy steps."""
    engine.reset()
    token, seconds = engine.document_start(), []
    last = time.perf_counter()
    for _ in range(count):
        token = int(engine.eval([token]).argmax())
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
    return seconds


def _samples(repeat: int, report: Callable[[], None], once: Callable[[], Sample]) -> list[Sample]:
    """Run `once` to warm up, then `repeat` times; what the latter returned."""
    runs = []
    for _ in range(repeat + 1):
        runs.append(once())
        report()
    return runs[1:]


def _runtime(engine: Mapping[str, Any]) -> dict[str, Any]:
    from minigpt_edge_runtime import __version__

    return {**engine, "minigpt_edge_runtime": __version__, "torch_loaded": "torch" in sys.modules}


def _reporter(progress: Progress | None, what: str, total: int) -> Callable[[], None]:
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(what, done, total)

    return report


def _need_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UsageError(f"{name} is {value}, it must be 1 or more")


if __name__ == "__main__":
    from minigpt_edge_runtime.fresh import main

    main()
