"""Which engine runs a file."""

from __future__ import annotations

import os
from pathlib import Path

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError

_GIVE = "give a .gguf or .onnx file, or a bundle's directory"


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
        path: a .gguf file, a .onnx file in its directory, or the directory of a bundle or model that holds
            one of them (`minigpt_edge_runtime.load` chooses among several, and compares checksums).
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
    path = _model_in(path) if path.is_dir() else path
    if path.suffix.lower() == ".onnx":
        from minigpt_edge_runtime.engines.onnx import OnnxEngine

        return OnnxEngine(path, context_length, threads, logits_all)
    if path.suffix.lower() != ".gguf" and not is_gguf(path):
        hint = "minigpt_edge_runtime.load takes the zip file of a bundle" if path.suffix == ".zip" else _GIVE
        raise EdgeError(f"{path} is not a model this runtime can run", hint)
    from minigpt_edge_runtime.engines.gguf import LlamaEngine

    return LlamaEngine(path, context_length, threads, logits_all)


def _model_in(directory: Path) -> Path:
    """The one model file of a directory; EdgeError if there is none or a choice."""
    found = sorted(
        path
        for pattern in ("*.gguf", "*.onnx", "*/*.onnx")
        for path in directory.glob(pattern)
        if path.is_file()
    )
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(path.relative_to(directory)) for path in found)
        raise EdgeError(
            f"{directory} holds several model files ({names})",
            "give one of them, or the directory to minigpt_edge_runtime.load, which takes the first",
        )
    if any(directory.glob("*.safetensors")):
        raise EdgeError(
            f"{directory} is a checkpoint, which this runtime can't run",
            "make a bundle of it: minigpt-edge build --model DIRECTORY",
        )
    raise EdgeError(f"{directory} holds no model file", _GIVE)


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
