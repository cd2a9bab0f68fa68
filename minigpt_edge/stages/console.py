"""The log of a build: one line per finished stage and a progress bar, all on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minigpt_edge.stages.events import Events

if TYPE_CHECKING:
    from minigpt_edge.stages.stage import Stage

PLAIN_EVERY = 30.0  # seconds between lines about one step where there is no terminal


class Log:
    """A bar for what is going on now, and lasting lines above it; lines alone where there is no terminal.

    Args:
        quiet: log nothing.
        log_json: log lines of JSON in place of text, see `events.Events`.
    """

    def __init__(self, *, quiet: bool = False, log_json: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet or log_json, highlight=False)
        self.events = Events()
        if log_json:
            self.events.to(lambda line: print(line, file=sys.stderr, flush=True))
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what = ""
        self._last_line = time.monotonic()

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self.events.ended(error)

    def step(self, what: str, done: float = 0, total: float | None = None, detail: str = "") -> None:
        """Show how far `what` is; total None where that is not known."""
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(what, total=total, detail=detail), what
        self._progress.update(self._task, completed=done, total=total, detail=detail)
        self.events.emit("progress", what=what, done=done, total=total)
        if not self.console.is_terminal and time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            share = f" {done / total:.0%}" if total else ""
            self.console.print(f"            [dim]{what}{share} {detail}[/]", soft_wrap=True)

    def recovery(self, state: dict[str, Any]) -> None:
        """Show how far recovery is: its `on_progress`."""
        if "message" in state:
            return self.line("recover", str(state["message"]))
        self.events.emit("recovery", **state)
        parts = []
        if state.get("loss") is not None:
            parts.append(f"loss {state['loss']:.3f}")
        if state.get("tokens_per_second"):
            parts.append(f"{state['tokens_per_second']:,.0f} tokens/s")
        if state.get("bits_per_byte") is not None:
            self.line(
                "recover",
                f"after {state['tokens']:,} tokens {state['bits_per_byte']:.4f} bits per byte on validation",
            )
        self.step("recover", state.get("step", 0), state.get("steps"), ", ".join(parts))
        return None

    def finished(self, name: str, text: str, stage: Stage) -> None:
        """The line of a finished stage: how long it took, or that it was cached."""
        self.line(name, text, stage.manifest["seconds"], cached=stage.cached)

    def line(
        self,
        stage: str,
        text: str,
        seconds: float | None = None,
        *,
        cached: bool = False,
        warning: bool = False,
    ) -> None:
        """A lasting line about a stage; the text is plain, and no name in it is taken for markup."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._last_line = time.monotonic()
        mark = "warning: " if warning else ""
        self.events.emit("stage", stage=stage, text=mark + text, seconds=seconds, reused=cached)
        took = "[dim](cached)[/]" if cached else "" if seconds is None else f"[dim]({seconds:.1f} s)[/]"
        shown = f"[yellow]{mark}[/]{escape(text)}"
        self.console.print(f"[green]{stage:>10}[/]  {shown} {took}", soft_wrap=True)
