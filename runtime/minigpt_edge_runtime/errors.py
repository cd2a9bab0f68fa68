"""The errors a person can act on. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class EdgeError(Exception):
    """Something failed that the user can put right.

    Args:
        message: what is wrong, one sentence without a trailing period.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeError):
    """The command line asks for something that does not exist or contradicts itself (exit 2)."""

    exit_code = 2
