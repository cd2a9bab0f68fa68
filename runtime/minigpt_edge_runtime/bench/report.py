"""A latency report put together from what was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.bundle.open import Bundle
from minigpt_edge_runtime.formats.latency_report import SCHEMA, VERSION, check

_ARTEFACT = ("name", "file", "format", "bytes", "sha256", "quantization", "parameters")
_QUALITY = ("bits_per_byte", "stderr", "perplexity_per_base_token", "windows", "split", "per_window")


@dataclass(frozen=True)
class Measured:
    """The parts that a report is made of.

    Attributes:
        bundle: the model file and where it came from.
        model: as `describe_model` returns it.
        device: as `describe_device` does.
        latency: as `measure_latency` does.
        bandwidth: as `measure_bandwidth` does.
        quality: as `measure_quality` does, or None.
        sample_sha256: of the file whose text was scored.
        memory_limit: bytes that the process which measured latency could have had.
    """

    profile: str
    bundle: Bundle
    model: Mapping[str, Any]
    device: Mapping[str, Any]
    latency: Mapping[str, Any]
    bandwidth: Mapping[str, Any]
    quality: Mapping[str, Any] | None
    sample_sha256: str | None
    memory_limit: int | None


def make_report(measured: Measured) -> dict[str, Any]:
    """A report of the parts that were measured.

    Raises:
        EdgeError: the parts do not make a valid report.
    """
    manifest, latency, quality = measured.bundle.manifest, measured.latency, measured.quality
    weight_bytes = measured.model["weight_bytes_per_token"]
    report = {
        "schema": SCHEMA,
        "schema_version": VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": measured.profile,
        "artefact": {
            **{key: measured.model[key] for key in (*_ARTEFACT, "architecture", "vocabulary")},
            "bundle": manifest.get("name"),
            "base_model": (manifest.get("base_model") or {}).get("name"),
            "domain": manifest.get("domain"),
        },
        "device": dict(measured.device),
        "runtime": latency["runtime"],
        "settings": {
            **latency["settings"],
            "memory_limit_bytes": measured.memory_limit,
            "memory_limit_by": None if measured.memory_limit is None else "watchdog",
        },
        "load": latency["load"],
        "prefill": latency["prefill"],
        "decode": [_with_roofline(one, weight_bytes, measured.bandwidth) for one in latency["decode"]],
        "memory": latency["memory"],
        "energy": latency["energy"],
        "roofline": {**measured.bandwidth, "weight_bytes_per_token": weight_bytes},
        "quality": quality
        and {
            **{key: quality[key] for key in (*_QUALITY, "multiple_choice")},
            "sample_sha256": measured.sample_sha256,
        },
    }
    report["summary"] = summarize(report)
    check(report, "the latency report", "report this as a bug")
    return report


def _with_roofline(
    decode: Mapping[str, Any], weight_bytes: int | None, bandwidth: Mapping[str, Any]
) -> dict[str, Any]:
    """`decode` with the share it reaches of the speed at which its weights could be read from memory."""
    rate = statistics.median(decode["samples_ts"])
    available = bandwidth["read_bandwidth_bytes_per_second"]
    share = None if weight_bytes is None else round(rate * weight_bytes / available, 4)
    return {**decode, "bytes_per_token": weight_bytes, "roofline_share": share}


def summarize(report: Mapping[str, Any]) -> dict[str, Any]:
    """The headline of a report: medians of its samples, each figure once."""
    shortest, longest, decode = report["prefill"][0], report["prefill"][-1], report["decode"][0]
    quality, energy = report["quality"] or {}, report["energy"] or {}
    return {
        "load_ms": statistics.median(report["load"]["samples_ns"]) / 1e6,
        "ttft_ms": shortest["ttft_ms"],
        "ttft_prompt": shortest["n_prompt"],
        "prefill_tokens_per_second": statistics.median(longest["samples_ts"]),
        "prefill_prompt": longest["n_prompt"],
        "decode_tokens_per_second": statistics.median(decode["samples_ts"]),
        "decode_depth": decode["n_depth"],
        "itl_ms": decode["itl_ms"],
        "peak_rss_bytes": report["memory"]["peak_rss_bytes"],
        "bytes": report["artefact"]["bytes"],
        "bits_per_byte": quality.get("bits_per_byte"),
        "multiple_choice_accuracy": (quality.get("multiple_choice") or {}).get("accuracy"),
        "roofline_share": decode["roofline_share"],
        "decode_joules_per_token": energy.get("decode_joules_per_token"),
    }
