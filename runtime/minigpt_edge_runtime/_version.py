"""The one version of all three packages (both pyproject files read it)."""

__version__ = "0.1.0"
