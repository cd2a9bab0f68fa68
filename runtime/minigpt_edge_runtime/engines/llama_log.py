"""llama.cpp's log, kept off the terminal; its last lines explain a failure."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lines: deque[str] = deque(maxlen=40)
_captures: list[list[str]] = []
_callback: Any = None  # llama.cpp keeps only a pointer to it


def quiet() -> None:
    """Send llama.cpp's log to a small buffer instead of stderr, for the rest of the process."""
    global _callback
    if _callback is not None:
        return
    import llama_cpp

    @llama_cpp.llama_log_callback
    def keep(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        decoded = text.decode("utf-8", errors="replace")
        for capture in _captures:
            capture.append(decoded)
        line = decoded.strip()
        if line and line != "." * len(line):
            _lines.append(line)

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    _callback = keep


def last_lines() -> list[str]:
    """The last five lines that llama.cpp logged, oldest first."""
    return list(_lines)[-5:]


@contextmanager
def capturing() -> Iterator[list[str]]:
    """All that llama.cpp logs inside the block, in pieces as they come (a line may come in several)."""
    quiet()
    pieces: list[str] = []
    _captures.append(pieces)
    try:
        yield pieces
    finally:
        _captures.remove(pieces)
