"""Which engine runs a file."""

from __future__ import annotations

import os
from pathlib import Path

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError


def default_threads() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_engine(
    path: Path | str, context_length: int | None = None, threads: int | None = None, logits_all: bool = False
) -> Engine:
    """Load a model file.

    Args:
        path: a .gguf file, or a .onnx file in its directory.
        context_length: tokens the cache holds; by default the model's own, at most 2,048.
        threads: CPU threads; by default all this process may use.
        logits_all: allow `score` and `logits` (needs memory for the logits of 512 tokens).

    Raises:
        EdgeError: the file is missing, damaged, foreign or unsupported, or the context too long for it.
    """
    path = Path(path)
    threads = threads or default_threads()
    if not path.exists():
        raise EdgeError(f"{path} does not exist", "check the path")
    if path.suffix.lower() == ".onnx":
        from minigpt_edge_runtime.engines.onnx import OnnxEngine

        return OnnxEngine(path, context_length, threads, logits_all)
    if path.suffix.lower() != ".gguf" and not is_gguf(path):
        raise EdgeError(
            f"{path} is not a model this runtime can run", "give a .gguf or .onnx file, or a bundle directory"
        )
    from minigpt_edge_runtime.engines.gguf import LlamaEngine

    return LlamaEngine(path, context_length, threads, logits_all)


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
