"""Measure a bundle's model file on this machine: everything that makes a latency report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bench.fresh import run_fresh
from minigpt_edge_runtime.bench.hardware import describe_device
from minigpt_edge_runtime.bench.profiles import Changes, profile_settings
from minigpt_edge_runtime.bench.report import Measured, make_report
from minigpt_edge_runtime.bundle.open import Bundle
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.formats.artefact import describe_model
from minigpt_edge_runtime.scoring.held_out import HELD_OUT, read_held_out


def held_out_file(bundle: Bundle) -> Path | None:
    """The bundle's own held-out sample, None if its manifest lists none."""
    return bundle.directory / HELD_OUT if HELD_OUT in bundle.manifest.get("files", {}) else None


def bench_bundle(
    bundle: Bundle,
    profile: str = "laptop",
    changes: Changes | None = None,
    *,
    texts: Path | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a model file, each part in a process of its own, and return the latency report.

    Args:
        texts: a held-out.json or texts.json to score; None leaves quality out.
        memory_limit: bytes that loading and running the model may use (scoring text is not limited: it needs
            the logits of every token, and a device does not do it).
        progress: draw bars on stderr.

    Raises:
        EdgeError: the file is damaged or can't be run, a length does not fit into its context, a
            text can't be scored, or the model needs more than the limit.
    """
    if texts is not None:  # before minutes of measuring
        read_held_out(texts)
    model = describe_model(bundle.model_path)
    wanted = profile_settings(profile, changes, model.get("context_length"))
    device = describe_device()
    bandwidth = run_fresh("bandwidth", threads=wanted.threads, progress=progress)
    latency = run_fresh(
        "latency", bundle.model_path, settings=asdict(wanted), memory_limit=memory_limit, progress=progress
    )
    quality = None
    if texts is not None:
        options: dict[str, Any] = {"texts": str(texts), "threads": wanted.threads}
        quality = run_fresh("quality", bundle.model_path, progress=progress, **options)
    return make_report(
        Measured(
            profile=wanted.profile,
            bundle=bundle,
            model=model,
            device=device,
            latency=latency,
            bandwidth=bandwidth,
            quality=quality,
            sample_sha256=None if texts is None else sha256_file(texts),
            memory_limit=memory_limit,
        )
    )
