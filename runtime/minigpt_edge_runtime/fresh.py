"""Measurements in a process of their own: how one is started, and what runs inside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from minigpt_edge_runtime.click_group import INTERRUPTED, show_error
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import read_json, write_json

CRASH_HINT = (
    "if there was memory enough, llama.cpp may have been built for another CPU: "
    "pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python"
)


def run_fresh(kind: str, model: Path | str, *, progress: bool = False, **options: Any) -> dict[str, Any]:
    """Measure in a new process, and return what it measured.

    Args:
        kind: "speed" or "quality".
        model: the model file.
        progress: let the new process draw a bar on stderr.
        options: as `measure_speed` or `measure_quality` take them (`texts` a path); None is the default.

    Raises:
        EdgeError: with the new process's own message and hint.
    """
    if kind not in ("speed", "quality"):
        raise UsageError(f"there is no measurement {kind!r}", "choose speed or quality")
    with tempfile.TemporaryDirectory(prefix="minigpt-edge-") as folder:
        output = Path(folder) / "result.json"
        # -P: a stray numpy.py in the working directory must not be imported
        command = [
            sys.executable,
            "-P",
            "-m",
            "minigpt_edge_runtime.measure",
            kind,
            str(model),
            "-o",
            str(output),
        ]
        command += ["--json-errors"] + (["--progress"] if progress else [])
        for name, value in options.items():
            if value is not None:
                command += ["--" + name.replace("_", "-"), str(value)]
        done = subprocess.run(
            command,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=None if progress else subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            raise _child_error(kind, Path(model), done)
        return dict(read_json(output))


def _environment() -> dict[str, str]:
    """This environment, in which the new process finds the package that runs here."""
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _child_error(kind: str, model: Path, done: subprocess.CompletedProcess[str]) -> EdgeError:
    try:
        told = json.loads(done.stdout)
        return EdgeError(told["error"], told["hint"])
    except (ValueError, TypeError, KeyError):
        pass  # it crashed, so all it left is its stderr
    if done.returncode < 0:
        return EdgeError(
            f"measuring the {kind} of {model} was ended by signal {-done.returncode}", CRASH_HINT
        )
    lines = (done.stderr or "").strip().splitlines()
    return EdgeError(f"measuring the {kind} of {model} failed: {lines[-1] if lines else 'no message'}")


def _bar(shown: bool) -> Any:
    """A progress callback that draws on stderr when asked and stderr is a terminal, else None."""
    if not (shown and sys.stderr.isatty()):
        return None
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bar = Progress(console=Console(stderr=True), transient=True)
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            bar.start()
            tasks[what] = bar.add_task(f"measuring {what}", total=total)
        bar.update(tasks[what], completed=done)
        if done == total:
            bar.stop()

    return show


def _common(command: Any) -> Any:
    for option in (
        click.option("--json-errors", is_flag=True, hidden=True, help="Report a failure as JSON on stdout."),
        click.option("--progress", is_flag=True, help="Draw a progress bar on stderr."),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), help="Write the JSON here, not to stdout."
        ),
        click.option("--context-length", type=click.IntRange(1), help="Tokens of the context."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads (default: all)."),
        click.argument("model", type=click.Path(path_type=Path)),
    ):
        command = option(command)
    return command


@click.group()
def commands() -> None:
    """Measure one model file in this process."""


@commands.command()
@_common
@click.option("--prompt-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--generate-tokens", type=click.IntRange(1), default=64, show_default=True)
@click.option("--first-token-prompt", type=click.IntRange(1), default=128, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
def speed(model: Path, output: Path | None, progress: bool, json_errors: bool, **options: Any) -> None:
    """Load time, time to first token, tokens/s and peak memory."""
    from minigpt_edge_runtime.measure import measure_speed

    _put(measure_speed(model, progress=_bar(progress), **options), output)


@commands.command()
@_common
@click.option(
    "--texts", type=click.Path(path_type=Path), required=True, help="A texts.json of held-out windows."
)
def quality(model: Path, output: Path | None, progress: bool, json_errors: bool, **options: Any) -> None:
    """Bits per byte and perplexity per base-model token on held-out text."""
    from minigpt_edge_runtime.measure import measure_quality

    _put(measure_quality(model, progress=_bar(progress), **options), output)


def _put(result: dict[str, Any], output: Path | None) -> None:
    if output is None:
        click.echo(json.dumps(result, indent=2))
    else:
        write_json(output, result)


def main() -> None:
    """The command line of `python -m minigpt_edge_runtime.measure`."""
    try:
        commands(prog_name="python -m minigpt_edge_runtime.measure", standalone_mode=False)
    except EdgeError as error:
        if "--json-errors" in sys.argv:
            click.echo(json.dumps({"error": error.message, "hint": error.hint}))
        else:
            show_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)  # the process that started this one says so
