"""Latency reports as bench writes them, made up but plausible: samples scatter, token times have a tail."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bench.report import summarize

SHA = {"onnx-int4": "a" * 64, "IQ4_NL": "b" * 64, "F16": "c" * 64}


def make_report(
    seed: int = 0,
    *,
    threads: int = 1,
    speed: float = 1.0,
    quantization: str = "IQ4_NL",
    megabytes: float = 71.0,
    bits: float = 0.94,
    repetitions: int = 5,
    prompt_lengths: Sequence[int] = (16, 128, 512),
    depths: Sequence[int] = (0, 128, 512, 1024),
    n_gen: int = 32,
    scatter: float = 0.015,
    cpu: str = "AMD Ryzen 7 7840U",
    name: str = "SmolLM2-135M-law",
    sample: str = "d",
) -> dict[str, Any]:
    """A report; the same seed and settings give the same one."""
    chance = random.Random(seed)
    prefill = [
        _prefill(chance, n, 900 * speed / (1 + n / 4000), repetitions, scatter) for n in prompt_lengths
    ]
    decode = [_decode(chance, d, n_gen, 75 * speed / (1 + d / 3000), repetitions, scatter) for d in depths]
    load = [int(chance.gauss(1, scatter) * 9e7) for _ in range(repetitions)]
    size = int(megabytes * 1e6)
    report = {
        "schema": "minigpt-edge/latency-report",
        "schema_version": 1,
        "created": "2026-11-25T02:00:00Z",
        "profile": "cpu" if threads == 1 else "laptop",
        "artefact": _artefact(name, quantization, size),
        "device": _device(cpu),
        "runtime": _runtime(quantization),
        "settings": {
            **_settings(threads, repetitions),
            "prompt_lengths": list(prompt_lengths),
            "depths": list(depths),
            "n_gen": n_gen,
        },
        "load": {"samples_ns": load, **_average("ns", load)},
        "prefill": prefill,
        "decode": decode,
        "memory": {
            "rss_before_load_bytes": 41_000_000,
            "rss_after_load_bytes": 48_000_000 + size,
            "peak_rss_bytes": 70_000_000 + size,
        },
        "energy": {
            "source": "rapl",
            "prefill_joules_per_token": 0.011 / speed**0.3,
            "decode_joules_per_token": 0.14 / speed**0.3,
        },
        "roofline": _roofline(21e9 * speed**0.4, threads, size),
        "quality": _quality(chance, bits, sample),
    }
    report["summary"] = summarize(report)
    return report


def _artefact(name: str, quantization: str, size: int) -> dict[str, Any]:
    onnx = quantization.startswith("onnx")
    return {
        "name": name,
        "file": f"{name.lower()}-{quantization.lower()}.{'onnx' if onnx else 'gguf'}",
        "format": "onnx" if onnx else "gguf",
        "bytes": size,
        "sha256": SHA.get(quantization, "e" * 64),
        "quantization": quantization,
        "parameters": 106_000_000,
        "architecture": "llama",
        "vocabulary": 24_000,
        "bundle": name,
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "domain": "law",
    }


def _settings(threads: int, repetitions: int) -> dict[str, Any]:
    return {
        "n_threads": threads,
        "pinned_cpus": list(range(threads)),
        "repetitions": repetitions,
        "warmup": 1,
        "context_length": 1152,
        "memory_limit_bytes": None,
    }


def _runtime(quantization: str) -> dict[str, Any]:
    onnx = quantization.startswith("onnx")
    return {
        "name": "onnxruntime" if onnx else "llama.cpp",
        "package": "onnxruntime 1.23.2" if onnx else "llama-cpp-python 0.3.36",
        "minigpt_edge_runtime": "0.1.0",
        "libraries": {"numpy": "2.4.6", "tokenizers": "0.22.1"},
        "torch_loaded": False,
    }


def _device(cpu: str) -> dict[str, Any]:
    return {
        "cpu": cpu,
        "architecture": "x86_64",
        "features": {"avx2": True, "avx512f": True, "avx512_vnni": True, "avx_vnni": False, "neon": None},
        "cores": 16,
        "physical_cores": 8,
        "cores_usable": 16,
        "memory_bytes": 32_000_000_000,
        "system": "Linux 6.12.0",
        "python": "3.12.4",
        "governor": "performance",
        "power_source": "mains",
        "clock_mhz": 5100,
    }


def _roofline(bandwidth: float, threads: int, size: int) -> dict[str, Any]:
    return {
        "read_bandwidth_bytes_per_second": bandwidth,
        "threads": threads,
        "weight_bytes_per_token": size,
        "samples": [bandwidth],
    }


def _average(unit: str, values: Sequence[float]) -> dict[str, float]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {f"avg_{unit}": statistics.fmean(values), f"stddev_{unit}": spread}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """mean, p50, p90 and p99, linearly interpolated."""
    cuts = statistics.quantiles([*values, *values] if len(values) == 1 else values, n=100, method="inclusive")
    return {"mean": statistics.fmean(values), "p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def _samples(tokens: int, nanoseconds: list[int]) -> dict[str, Any]:
    rates = [tokens * 1e9 / ns for ns in nanoseconds]
    return {
        "samples_ns": nanoseconds,
        "samples_ts": rates,
        **_average("ns", nanoseconds),
        **_average("ts", rates),
    }


def _prefill(chance: random.Random, n: int, rate: float, count: int, scatter: float) -> dict[str, Any]:
    times = [int(n / rate * 1e9 * abs(chance.gauss(1, scatter))) for _ in range(count)]
    ttft = percentiles([ns / 1e6 for ns in times])
    return {"n_prompt": n, "n_gen": 0, "n_depth": 0, **_samples(n, times), "ttft_ms": ttft}


def _decode(
    chance: random.Random, depth: int, n: int, rate: float, count: int, scatter: float
) -> dict[str, Any]:
    runs = [
        [int(1e9 / rate * (abs(chance.gauss(1, scatter)) + chance.expovariate(60))) for _ in range(n)]
        for _ in range(count)
    ]
    itl = percentiles([ns / 1e6 for run in runs for ns in run])
    return {
        "n_prompt": 0,
        "n_gen": n,
        "n_depth": depth,
        **_samples(n, [sum(run) for run in runs]),
        "itl_ns": runs,
        "itl_ms": itl,
        "bytes_per_token": 71_000_000 + 20_000 * depth,
        "roofline_share": 0.52,
    }


def _quality(chance: random.Random, bits: float, sample: str) -> dict[str, Any]:
    text = random.Random(sample)  # the windows' difficulty belongs to the text, not to the model
    hardness = [text.gauss(1, 0.2) for _ in range(40)]
    windows = [
        {
            "nll": bits * 0.693147 * 1800 * h * chance.gauss(1, 0.01),
            "tokens": 420,
            "bytes": 1800,
            "base_tokens": 400,
        }
        for h in hardness
    ]
    right = [text.randrange(4) for _ in range(64)]
    answers = [a if chance.random() < 0.7 else (a + 1) % 4 for a in right]
    accuracy = sum(a == b for a, b in zip(answers, right, strict=True)) / 64
    return {
        "bits_per_byte": sum(w["nll"] for w in windows) / 0.693147 / (40 * 1800),
        "stderr": 0.026,
        "perplexity_per_base_token": 18.2,
        "windows": 40,
        "split": "test",
        "per_window": windows,
        "multiple_choice": {
            "accuracy": accuracy,
            "stderr": 0.057,
            "questions": 64,
            "chance": 0.25,
            "answers": answers,
        },
        "sample_sha256": sample * 64,
    }


def without_optional_facts(report: dict[str, Any]) -> dict[str, Any]:
    """The report with null wherever the schema allows it to be unknown or unmeasured."""
    report["quality"] = report["energy"] = None
    report["memory"] = dict.fromkeys(report["memory"])
    report["artefact"].update(bundle=None, base_model=None, domain=None)
    report["device"].update(
        dict.fromkeys(("cpu", "physical_cores", "memory_bytes", "governor", "power_source"))
    )
    report["device"]["clock_mhz"] = report["settings"]["pinned_cpus"] = None
    for measured in report["decode"]:
        measured["roofline_share"] = None
    report["summary"] = summarize(report)
    return report


def write_reports(folder: Path, **reports: dict[str, Any]) -> list[Path]:
    """Write each report as `name`.json; the paths in order."""
    paths = []
    for name, report in reports.items():
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(report))
    return paths
