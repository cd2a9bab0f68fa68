"""What a device installs: runs, measures and checks a bundle. No torch, no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime._version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from minigpt_edge_runtime.generate.model import Model

__all__ = ["__version__", "load"]


def load(path: Path | str, **options: Any) -> Model:
    """A bundle or model file, ready for `generate`, `chat`, `stream` and `score`.

    Args:
        path: a bundle's directory or zip file, a .gguf file, or a .onnx file.
        options: `file`, `context_length`, `threads` and `check`: see `generate.model.Model`.

    Raises:
        EdgeError: it is no bundle or model file, is damaged or changed, or can't hold so long a context.
    """
    from minigpt_edge_runtime.generate.model import Model

    return Model(path, **options)
