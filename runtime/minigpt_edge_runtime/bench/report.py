"""Latency reports: put together from what was measured, read, and checked against their schema."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bench.schema import check, load_schema
from minigpt_edge_runtime.bundle.open import Bundle
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json

SCHEMA = "minigpt-edge/latency-report"
VERSION = 1
_ARTEFACT = (
    "name",
    "file",
    "format",
    "bytes",
    "sha256",
    "quantization",
    "parameters",
    "architecture",
    "vocabulary",
)
_QUALITY = (
    "bits_per_byte",
    "stderr",
    "perplexity_per_base_token",
    "windows",
    "split",
    "per_window",
    "multiple_choice",
)


def make_report(
    *,
    profile: str,
    bundle: Bundle,
    model: Mapping[str, Any],
    device: Mapping[str, Any],
    measured: Mapping[str, Any],
    bandwidth: Mapping[str, Any],
    quality: Mapping[str, Any] | None,
    sample_sha256: str | None,
    memory_limit: int | None,
) -> dict[str, Any]:
    """A report of the parts that were measured.

    Args:
        model: as `describe_model` returns it.
        device: as `describe_device` does.
        measured: as `measure_latency` does.
        bandwidth: as `measure_bandwidth` does.
        quality: as `measure_quality` does, or None.
        sample_sha256: of the file whose text was scored.

    Raises:
        EdgeError: the parts do not make a valid report.
    """
    manifest, weight_bytes = bundle.manifest, model["weight_bytes_per_token"]
    limited_by = None if memory_limit is None else "watchdog"
    report = {
        "schema": SCHEMA,
        "schema_version": VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "profile": profile,
        "artefact": {
            **{key: model[key] for key in _ARTEFACT},
            "bundle": manifest.get("name"),
            "base_model": (manifest.get("base_model") or {}).get("name"),
            "domain": manifest.get("domain"),
        },
        "device": dict(device),
        "runtime": measured["runtime"],
        "settings": {
            **measured["settings"],
            "memory_limit_bytes": memory_limit,
            "memory_limit_by": limited_by,
        },
        "load": measured["load"],
        "prefill": measured["prefill"],
        "decode": [_with_roofline(one, weight_bytes, bandwidth) for one in measured["decode"]],
        "memory": measured["memory"],
        "energy": measured["energy"],
        "roofline": {**bandwidth, "weight_bytes_per_token": weight_bytes},
        "quality": quality and {**{key: quality[key] for key in _QUALITY}, "sample_sha256": sample_sha256},
    }
    report["summary"] = summarize(report)
    check(report, load_schema("latency-report-1.json"), "the latency report", "report this as a bug")
    return report


def read_report(path: Path) -> dict[str, Any]:
    """Read a latency report.

    Raises:
        EdgeError: it is missing, damaged, something else, or of a schema version that is not known.
    """
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise EdgeError(f"{path} is not a latency report", "make one with: bench BUNDLE -o report.json")
    if report.get("schema_version") != VERSION:
        raise EdgeError(
            f"{path} has schema version {report.get('schema_version')}, known is {VERSION}",
            "measure again, or use the version of minigpt-edge that wrote it",
        )
    check(report, load_schema("latency-report-1.json"), str(path), "measure again with: bench BUNDLE -o ...")
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
