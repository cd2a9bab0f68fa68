"""What a device installs: runs, measures and checks a bundle. No torch, no transformers."""

from minigpt_edge_runtime._version import __version__

__all__ = ["__version__"]
