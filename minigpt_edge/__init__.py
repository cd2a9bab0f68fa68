"""Decides what to prune, shrinks, recovers and ships a domain model. Torch is imported late."""

from minigpt_edge_runtime._version import __version__

__all__ = ["__version__"]
