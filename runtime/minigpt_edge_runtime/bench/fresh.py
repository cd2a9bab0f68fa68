"""Measurements in a process of their own: how one is started and watched, and what runs inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.bench.memory import LOOK_EVERY, check_used, memory_used
from minigpt_edge_runtime.engines.spin import spin_as_usual
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import read_json, write_json

KINDS = ("speed", "latency", "quality", "bandwidth")
CRASH_HINT = (
    "if there was memory enough, the engine's library may have been built for another CPU; install it again, "
    "llama-cpp-python built on this machine: pip install --force-reinstall --no-binary llama-cpp-python "
    "llama-cpp-python"
)
_REQUEST, _RESULT, _STEP = "request.json", "result.json", "step.txt"
Draw = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


def run_fresh(
    kind: str,
    model: Path | str | None = None,
    *,
    progress: bool = False,
    memory_limit: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure in a new process, and return what it measured.

    Args:
        kind: "speed", "latency", "quality", or "bandwidth" (which takes no model).
        model: the model file.
        progress: draw a bar on stderr (from this process, so that the new one measures the same either way).
        memory_limit: bytes the new process may use, see `bench.memory`.
        options: as the function that measures takes them, JSON or paths; None is its default.

    Raises:
        EdgeError: with the new process's own message and hint, or it exceeded the limit.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no measurement {kind!r}", f"choose one of: {', '.join(KINDS)}")
    given = {key: value for key, value in {"path": model, **options}.items() if value is not None}
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    with tempfile.TemporaryDirectory(prefix="minigpt-edge-") as name:
        folder = Path(name)
        write_json(folder / _REQUEST, {"kind": kind, "options": plain})
        with (folder / "stderr.txt").open("w+b") as log, _bar(kind, progress) as draw:
            # With -P a stray numpy.py in the working directory is not imported.
            command = [sys.executable, "-P", "-m", "minigpt_edge_runtime.bench.fresh", name]
            process = subprocess.Popen(command, env=_environment(kind), stdout=log, stderr=log)
            try:
                _watch(process, folder, draw, memory_limit)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            lines = log.read().decode("utf-8", errors="replace").strip().splitlines()
        about = f"measuring the {kind}" + (f" of {model}" if model is not None else "")
        answer = _answer(folder, about, process.returncode, lines)
    if memory_limit is not None:
        check_used(answer["peak_rss_bytes"] or 0, memory_limit, "measuring")
    return dict(answer["result"])


def _watch(
    process: subprocess.Popen[bytes], folder: Path, draw: Draw | None, memory_limit: int | None
) -> None:
    """Wait for the process; EdgeError as soon as it is seen to have more memory than it may."""
    if draw is None and memory_limit is None:
        process.wait()
    while process.poll() is None:
        if memory_limit is not None and (used := memory_used(process.pid)) > memory_limit:
            process.kill()
            check_used(used, memory_limit, _step(folder)[0])
        if draw is not None:
            draw(*_step(folder))
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2 if memory_limit is None else LOOK_EVERY)


def _step(folder: Path) -> tuple[str, int, int]:
    """What the new process does now, steps done, steps in all."""
    try:
        done, total, what = (folder / _STEP).read_text(encoding="utf-8").split(" ", 2)
    except FileNotFoundError:
        return "starting", 0, 1
    return what, int(done), int(total)


def _environment(kind: str) -> dict[str, str]:
    """This environment, in which the new process finds the package that runs here, to measure `kind`."""
    package_parent = str(Path(__file__).resolve().parents[2])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    made = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if kind != "quality":
        spin_as_usual(made)
    return made


def _answer(folder: Path, about: str, code: int, lines: list[str]) -> dict[str, Any]:
    """What the new process left, raised if it is an error."""
    if (folder / _RESULT).exists():
        answer = dict(read_json(folder / _RESULT))
        if "error" in answer:
            raise EdgeError(answer["error"], answer["hint"])
        return answer
    if code < 0:
        raise EdgeError(f"{about} was ended by signal {-code}", CRASH_HINT)
    raise EdgeError(f"{about} failed: {lines[-1] if lines else 'no message'}")


@contextmanager
def _bar(kind: str, shown: bool) -> Iterator[Draw | None]:
    """A callback that draws a bar on stderr; None if that is not wanted or no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(kind)

        def draw(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{kind}: {what}", completed=done, total=total)

        yield draw


def main(folder: Path) -> None:
    """The new process: measure what the request asks for."""
    request = read_json(folder / _REQUEST)
    waiting = folder / "waiting.txt"

    def progress(what: str, done: int, total: int) -> None:
        waiting.write_text(f"{done} {total} {what}", encoding="utf-8")
        waiting.replace(folder / _STEP)  # whole, or not yet

    try:
        result = _measure(request["kind"], request["options"], progress)
    except EdgeError as error:
        write_json(folder / _RESULT, {"error": error.message, "hint": error.hint})
        sys.exit(error.exit_code)
    from minigpt_edge_runtime.bench.memory import peak_rss_bytes

    write_json(folder / _RESULT, {"result": result, "peak_rss_bytes": peak_rss_bytes()})


def _measure(kind: str, options: dict[str, Any], progress: Draw) -> dict[str, Any]:
    if kind == "bandwidth":
        from minigpt_edge_runtime.bench.bandwidth import measure_bandwidth

        return measure_bandwidth(**options)
    from minigpt_edge_runtime.bench.measure import measure_latency, measure_quality, measure_speed
    from minigpt_edge_runtime.bench.profiles import Settings

    if kind == "latency":
        settings = Settings(**options.pop("settings"))
        return measure_latency(settings=settings, progress=progress, **options)
    measure = measure_speed if kind == "speed" else measure_quality
    return measure(progress=progress, **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
