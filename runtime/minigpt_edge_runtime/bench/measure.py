"""Measure a model file the way a device loads it: speed and memory, or quality on held-out text.

Through `run_fresh` each measurement has a process of its own, so that peak memory is the model's.
"""

from __future__ import annotations

import importlib.metadata
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bench.energy import Meter, find_meter
from minigpt_edge_runtime.bench.memory import peak_rss_bytes, rss_bytes
from minigpt_edge_runtime.bench.profiles import Settings, fit
from minigpt_edge_runtime.bench.samples import entry, milliseconds, nanoseconds
from minigpt_edge_runtime.cpus import pin
from minigpt_edge_runtime.device import device_info
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import default_threads, open_engine
from minigpt_edge_runtime.formats.artefact import describe_model

FORMAT = 1
WARMUP = 1  # runs of each test before those that count
Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all
_LIBRARIES = ("numpy", "tokenizers", "llama_cpp_python", "onnxruntime")


def measure_latency(path: Path | str, settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """Time a model file in this process, which is pinned to as many CPUs as there are threads.

    Prompts are seeded pseudo-random token ids, as llama-bench uses. The time of a prompt ends with the greedy
    pick of its first token, that of a decoded token with its own; tokenizing is not in it. Loading is
    checking the file, reading the weights and making the context; the first load also imports the library,
    and may read from the disk, so it is reported apart ("first_ns") and not counted.

    Returns:
        "settings", "load", "prefill", "decode", "memory", "energy" and "runtime" of a latency report; decode
        yet without what depends on the file, see `report.make_report`.

    Raises:
        EdgeError: the file can't be run, or its context is too short.
    """
    path, pinned = Path(path), pin(settings.threads)
    timed_runs = _TimedRuns(settings, progress)
    before = rss_bytes()
    timed_runs.step("loading")
    first, engine = _timed_load(path, settings)
    with engine:
        loaded = rss_bytes()
        prompt = _prompt(engine, max(settings.prompt_lengths[-1], settings.depths[-1]))
        prefill = [_prefill(engine, prompt[:length], timed_runs) for length in settings.prompt_lengths]
        decode = [_decode(engine, prompt[:depth], settings, timed_runs) for depth in settings.depths]
        peak = peak_rss_bytes()
        runtime = _runtime(engine.description())
    loads = [_reload(path, settings, timed_runs) for _ in range(settings.repetitions)]
    return {
        "settings": _settings(settings, pinned),
        "load": {**nanoseconds(loads), "first_ns": first},
        "prefill": prefill,
        "decode": decode,
        "memory": {"rss_before_load_bytes": before, "rss_after_load_bytes": loaded, "peak_rss_bytes": peak},
        "energy": timed_runs.meter
        and {
            "source": timed_runs.meter.source,
            "prefill_joules_per_token": prefill[-1]["joules_per_token"],
            "decode_joules_per_token": decode[0]["joules_per_token"],
        },
        "runtime": runtime,
    }


def measure_speed(
    path: Path | str, *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """The headline of `measure_latency` in a few figures (medians), and the model's description."""
    model = describe_model(Path(path))
    settings = Settings(threads or default_threads(), depths=(0,))
    if context := model.get("context_length"):
        settings = fit(settings, context)
    measured = measure_latency(path, settings, progress)
    peak, decode = measured["memory"]["peak_rss_bytes"], measured["decode"][0]
    return {
        "format": FORMAT,
        "kind": "speed",
        "model": model,
        "load_seconds": round(statistics.median(measured["load"]["samples_ns"]) / 1e9, 4),
        "ttft_ms": measured["prefill"][0]["ttft_ms"],
        "prefill_tokens_per_second": round(statistics.median(measured["prefill"][-1]["samples_ts"]), 2),
        "decode_tokens_per_second": round(statistics.median(decode["samples_ts"]), 2),
        "itl_ms": decode["itl_ms"],
        "peak_rss_mb": None if peak is None else round(peak / 1e6, 1),
        "threads": settings.threads,
        "settings": measured["settings"],
        "runtime": measured["runtime"],
    }


def measure_quality(
    path: Path | str,
    texts: Path | str | dict[str, Any],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score held-out windows, each on its own from the document-start token, and answer questions.

    Args:
        texts: a texts.json, a bundle's held-out.json, or the content of one, see `held_out.read_held_out`.

    Returns:
        nll (nats), bits_per_byte with its standard error over windows, perplexity_per_base_token,
        per window nll, tokens, bytes and base_tokens, and multiple_choice (None without questions).

    Raises:
        EdgeError: texts is damaged, one exceeds the context, or the vocabulary loses bytes of a text.
    """
    from minigpt_edge_runtime.scoring.held_out import read_held_out, score_held_out, summarize

    path, threads = Path(path), threads or default_threads()
    model = describe_model(path)
    held_out = read_held_out(Path(texts) if isinstance(texts, str) else texts)
    began = time.perf_counter()
    scored = score_held_out(path, held_out, threads, progress)
    return {
        "format": FORMAT,
        "kind": "quality",
        "model": model,
        **summarize(scored["per_window"]),
        "split": held_out.split,
        "document_start": held_out.document_start,
        "threads": threads,
        "seconds": round(time.perf_counter() - began, 3),
        "per_window": scored["per_window"],
        "multiple_choice": scored["multiple_choice"],
        "runtime": _runtime(scored["runtime"]),
        "device": device_info(),
    }


class _TimedRuns:
    """Runs a test as often as it is wanted, warmed up, with the energy of the runs that count."""

    def __init__(self, settings: Settings, progress: Progress | None) -> None:
        self._repetitions, self._progress = settings.repetitions, progress
        tests = len(settings.prompt_lengths) + len(settings.depths)
        self._done, self._steps = -1, tests * (WARMUP + settings.repetitions) + settings.repetitions + 1
        self.meter: Meter | None = find_meter()

    def step(self, what: str) -> None:
        """Say what begins now."""
        self._done += 1
        if self._progress is not None:
            self._progress(what, self._done, self._steps)

    def run(
        self, what: str, tokens: int, prepare: Callable[[], Any], timed: Callable[[], list[int]]
    ) -> tuple[list[list[int]], float | None]:
        """Nanoseconds that `timed` returned, a list per run; joules per token, None if they can't be read."""
        runs, joules = [], 0.0
        for number in range(-WARMUP, self._repetitions):
            self.step(what)
            prepare()
            before = self.meter.read() if self.meter else []
            times = timed()
            if number >= 0:
                runs.append(times)
                joules += self.meter.joules(before, self.meter.read()) if self.meter else 0.0
        return runs, joules / self._repetitions / tokens if self.meter else None


def _prefill(engine: Engine, prompt: Sequence[int], timed_runs: _TimedRuns) -> dict[str, Any]:
    def once() -> list[int]:
        began = time.perf_counter_ns()
        int(engine.eval(prompt).argmax())
        return [time.perf_counter_ns() - began]

    size = len(prompt)
    runs, joules = timed_runs.run(f"a prompt of {size:,} tokens", size, engine.reset, once)
    samples = [sum(run) for run in runs]
    return {**entry(size, 0, 0, samples), "ttft_ms": milliseconds(samples), "joules_per_token": joules}


def _decode(
    engine: Engine, filled: Sequence[int], settings: Settings, timed_runs: _TimedRuns
) -> dict[str, Any]:
    engine.reset()
    first = int(engine.eval(filled).argmax()) if filled else engine.document_start()

    def rewind() -> None:
        engine.keep(len(filled))
        if engine.cached < len(filled):  # a recurrent state can't be cut
            engine.eval(filled)

    def once() -> list[int]:
        token, times = first, []
        last = time.perf_counter_ns()
        for _ in range(settings.generate_tokens):
            token = int(engine.eval([token]).argmax())
            now = time.perf_counter_ns()
            times.append(now - last)
            last = now
        return times

    count = settings.generate_tokens
    runs, joules = timed_runs.run(f"decoding after {len(filled):,} tokens", count, rewind, once)
    return {
        **entry(0, count, len(filled), [sum(run) for run in runs]),
        "itl_ns": runs,
        "itl_ms": milliseconds([time for run in runs for time in run]),
        "joules_per_token": joules,
    }


def _prompt(engine: Engine, length: int) -> list[int]:
    import numpy as np

    return np.random.default_rng(0).integers(0, engine.vocab_size, length).tolist()


def _timed_load(path: Path, settings: Settings) -> tuple[int, Engine]:
    began = time.perf_counter_ns()
    engine = open_engine(path, settings.context_length, settings.threads)
    return time.perf_counter_ns() - began, engine


def _reload(path: Path, settings: Settings, timed_runs: _TimedRuns) -> int:
    timed_runs.step("loading")
    took, engine = _timed_load(path, settings)
    engine.close()
    return took


def _settings(settings: Settings, pinned: list[int] | None) -> dict[str, Any]:
    return {
        "n_threads": settings.threads,
        "pinned_cpus": pinned,
        "repetitions": settings.repetitions,
        "warmup": WARMUP,
        "prompt_lengths": list(settings.prompt_lengths),
        "depths": list(settings.depths),
        "n_gen": settings.generate_tokens,
        "context_length": settings.context_length,
    }


def _runtime(engine: Mapping[str, Any]) -> dict[str, Any]:
    from minigpt_edge_runtime._version import __version__

    loaded = [name for name in _LIBRARIES if name.removesuffix("_python") in sys.modules]
    return {
        **engine,
        "minigpt_edge_runtime": __version__,
        "libraries": {name.replace("_", "-"): importlib.metadata.version(name) for name in loaded},
        "torch_loaded": "torch" in sys.modules,
    }
