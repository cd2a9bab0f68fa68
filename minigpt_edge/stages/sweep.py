"""Sweeps: many builds from one TOML file, several at a time, that share every stage that is equal.

Each build is a process of its own, started as a person would start it, so that a sweep that is stopped goes
on where it was when it is given again.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from minigpt_edge.stages.checked import Count, checked
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json, write_json

SUMMARY = "sweep.json"
OWN = ("out", "threads", "json", "log-json", "dry-run", "force")  # of build's options, what the sweep sets
_HELP = "`minigpt-edge sweep --help` shows a whole file"


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Attributes:
        out: where the bundles go, one folder each.
        threads: of each build.
        jobs: builds at a time.
        builds: name of the bundle -> options of `build`.
    """

    out: Path
    threads: int
    jobs: int
    builds: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _File:
    """The form of a sweep file."""

    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    options: dict[str, Any] = field(default_factory=dict)
    out: str = ""
    threads: Count = 1
    jobs: Count | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def read_sweep(path: Path, options: Mapping[str, bool], cores: int) -> Sweep:
    """Read a sweep file.

    Args:
        options: the names of `build`'s options -> whether it is a flag.
        cores: what there is to run on.

    Raises:
        EdgeError: it is missing, is no TOML, or a value is not what it may be.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise os_error(error, path) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are such
        raise EdgeError(f"{path} is not TOML: {error}", _HELP) from error
    file = checked(_File, data, str(path), _HELP)
    for name in (*file.options, *file.vary):
        if name not in options or name in OWN:
            known = ", ".join(sorted(set(options) - set(OWN)))
            raise EdgeError(f"{path}: a sweep can't set {name!r}", f"options of build: {known}")
        if name in file.options and name in file.vary:
            raise EdgeError(f"{path}: {name} is under both [options] and [vary]", _HELP)
    builds: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*file.vary.values()):
        varied = dict(zip(file.vary, values, strict=True))
        if (build := _name(varied)) in builds:
            raise EdgeError(f"{path}: two builds would be called {build}", "vary names that differ")
        builds[build] = {**file.options, **varied}
        for name, value in builds[build].items():
            list(_arguments(name, value, options))
    jobs = file.jobs or max(1, cores // file.threads)
    return Sweep(Path(file.out or path.stem), file.threads, jobs, builds)


def _name(varied: Mapping[str, Any]) -> str:
    """What a build is called: its values, as a folder may be called."""
    parts = [
        "+".join(map(str, value)) if isinstance(value, list) else str(value) for value in varied.values()
    ]
    return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", Path(part).name).strip("-.") or "x" for part in parts)


def _arguments(name: str, value: Any, options: Mapping[str, bool]) -> Iterator[str]:
    """An option as it is given on the command line."""
    if options[name]:
        if not isinstance(value, bool):
            raise EdgeError(f"{name} is true or false, not {value!r}", _HELP)
        if value:
            yield f"--{name}"
        elif f"no-{name}" in options:
            yield f"--no-{name}"
        return
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise EdgeError(f"{name} can't be {one!r}", _HELP)
        yield f"--{name}={one}"


def run_sweep(sweep: Sweep, options: Mapping[str, bool], on_end: Any) -> list[dict[str, Any]]:
    """Run all builds; what became of each, in the order of the file, also in OUT/sweep.json.

    A build that fails does not stop the others.

    Args:
        on_end: called as on_end(name, row) when a build has ended.
    """
    rows: dict[str, dict[str, Any]] = {}
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, sweep.out) from error
    with ThreadPoolExecutor(sweep.jobs) as pool:
        running: list[subprocess.Popen[bytes]] = []
        started = {pool.submit(_build, sweep, name, options, running): name for name in sweep.builds}
        try:
            for future in as_completed(started):
                name = started[future]
                rows[name] = future.result()
                on_end(name, rows[name])
        except BaseException:  # Ctrl-C: the builds end as well, and what they finished stays
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    ordered = [{"name": name, **rows[name]} for name in sweep.builds]
    write_json(sweep.out / SUMMARY, {"builds": ordered})
    return ordered


def _build(
    sweep: Sweep, name: str, options: Mapping[str, bool], running: list[subprocess.Popen[bytes]]
) -> dict[str, Any]:
    """Run one build and read its report; its log is OUT/NAME.log."""
    given = sweep.builds[name]
    command = [sys.executable, "-m", "minigpt_edge", "build", f"--threads={sweep.threads}"]
    command += [part for key, value in given.items() for part in _arguments(key, value, options)]
    bundle, log = sweep.out / name, sweep.out / f"{name}.log"
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, f"--out={bundle}"], stdout=file, stderr=file)
        running.append(process)
        code = process.wait()
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return {"options": given, "failed": errors[-1].removeprefix("error: ") if errors else f"see {log}"}
    report = read_json(bundle / "report.json")
    files = [
        {
            "file": model["file"],
            "bytes": model["bytes"],
            "bits_per_byte": model["quality"]["bits_per_byte"],
            "tokens_per_second": model["speed"]["decode_tokens_per_second"],
        }
        for model in report["models"]
        if model["role"] == "shipped"
    ]
    return {"options": given, "sparsity": report["sparsity"]["achieved"], "files": files}
