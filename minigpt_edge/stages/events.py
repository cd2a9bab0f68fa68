"""What happened in a run, as lines of JSON: for programs that watch a build, and to look up afterwards."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

EVERY = 1.0  # seconds between two "progress" events at least
KEPT = 50  # runs whose events are kept


class Events:
    """Passes events on: {"time" (seconds since 1970), "event", ...} with the events

    "start" (command), "progress" (what, done, total), "stage" (stage, text, seconds, reused), "recovery"
    (tokens, loss, ...), "failed" (message, hint), "interrupted", "done" (seconds).
    """

    def __init__(self) -> None:
        self._sinks: list[Callable[[str], None]] = []
        self._early: list[str] | None = []  # lines from before there was a run directory
        self._begun = time.monotonic()
        self._progress = 0.0

    def to(self, write: Callable[[str], None]) -> None:
        """Pass every line from now on to `write`."""
        self._sinks.append(write)

    def to_run_directory(self, work: Path) -> Path:
        """Keep all events in a new directory under `work`/runs, and forget those of old runs."""
        runs = work / "runs"
        folder = runs / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        for line in self._early or []:
            _append(folder / "events.jsonl", line)
        self._early = None
        self.to(lambda line: _append(folder / "events.jsonl", line))
        for old in sorted(path for path in runs.iterdir() if path.is_dir())[:-KEPT]:
            with suppress(OSError):
                (old / "events.jsonl").unlink(missing_ok=True)
                old.rmdir()
        return folder

    def emit(self, event: str, **facts: Any) -> None:
        """Pass on an event; of "progress" at most one each second."""
        if event == "progress":
            now = time.monotonic()
            if now - self._progress < EVERY:
                return
            self._progress = now
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, ensure_ascii=False)
        if self._early is not None:
            self._early.append(line)
        for write in self._sinks:
            write(line)

    def ended(self, error: BaseException | None) -> None:
        """How the run ended."""
        if error is None:
            self.emit("done", seconds=round(time.monotonic() - self._begun, 2))
        elif isinstance(error, KeyboardInterrupt):
            self.emit("interrupted")
        else:
            message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self.emit("failed", message=message, hint=getattr(error, "hint", None))


def _append(path: Path, line: str) -> None:
    """A full disk must not end a build that would otherwise go on."""
    with suppress(OSError), open(path, "a", encoding="utf-8", errors="replace") as file:
        file.write(line + "\n")
