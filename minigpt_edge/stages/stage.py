"""Stages: directories that appear whole or not at all, are cached, and say what they hold.

A stage's key is the sha256 of its settings, the hashes of its inputs and its code. `WORK/NAME-KEY/` holds
what it made and `manifest.json`. While it is made it is `WORK/NAME-KEY.partial/`.
"""

from __future__ import annotations

import gc
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

from minigpt_edge.stages import parallel
from minigpt_edge.stages.memory import give_back
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.bench.memory import peak_rss_bytes
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import (
    os_error,
    publish_directory,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)

MANIFEST = "manifest.json"
LOCKS = ".locks"
_FORM = 2  # raise it when manifests change: older stages are then made anew
_SEAL = "manifest_sha256"  # of all else in the manifest
MACHINERY = (  # what every stage runs
    "minigpt_edge.stages",
    *(f"minigpt_edge_runtime.{name}" for name in ("cpus", "device", "errors", "files")),
)
_LIBRARIES = ("torch", "transformers", "llama-cpp-python", "gguf", "tokenizers", "numpy")


@dataclass(frozen=True)
class StageSpec:
    """What decides a stage's key, and how it is made.

    Attributes:
        settings: JSON-able, everything besides the inputs that decides the result.
        inputs: name -> sha256.
        code: packages and modules whose source decides the result; see `code_files`.
        resumable: keep what an interrupted run left for `make` to go on from.
        together: of several processes of a build all make it, into the same directory.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: Sequence[str]
    resumable: bool = False
    together: bool = False


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        path: its directory.
        manifest: stage, key, settings, inputs, outputs (file -> sha256), seconds, peak_rss_mb, metrics, and
            its own sha256.
        cached: whether it was there already.
    """

    path: Path
    manifest: dict[str, Any]
    cached: bool

    @property
    def metrics(self) -> dict[str, Any]:
        """What `make` returned."""
        return dict(self.manifest["metrics"])

    @property
    def digest(self) -> str:
        """sha256 over the outputs: what later stages depend on."""
        return sha256_json(self.manifest["outputs"])


def code_files(names: Sequence[str]) -> dict[str, Path]:
    """The source files of modules, of packages with all that lies in them, and of what every stage runs.

    They are found without importing them, and named by their place in the top package. What holds a package
    runs when that is imported, so its `__init__.py` is among them.

    Raises:
        ModuleNotFoundError: there is no package or module of a name.
    """
    files: dict[str, Path] = {}
    for name in (*names, *MACHINERY):
        found = [_source(part) for part in accumulate(name.split("."), "{}.{}".format)]
        root = found[0].parents[found[0].name == "__init__.py"]
        if found[-1].name == "__init__.py":
            found += found[-1].parent.rglob("*.py")
        files |= {path.relative_to(root).as_posix(): path for path in found}
    return files


def _source(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    return Path(spec.origin)


def code_hash(names: Sequence[str]) -> str:
    """sha256 over the source files of packages and modules; see `code_files`."""
    return sha256_json({name: sha256_file(path) for name, path in sorted(code_files(names).items())})


@contextmanager
def locked(work: Path, name: str, busy: str | None = None) -> Iterator[None]:
    """Lock a name in a work directory, so that one process at a time makes what has that name.

    Args:
        busy: the message if another process has the lock; None waits for that one, and says so.

    Raises:
        EdgeError: another process has the lock, or the directory can't be written.
    """
    from filelock import FileLock, Timeout

    try:
        (work / LOCKS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(work / LOCKS / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if busy:
                raise EdgeError(busy, "wait for it, or give another --out") from None
            print(f"another build is making {name}: waiting for it", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise os_error(error, work) from error
    try:
        yield
    finally:
        lock.release()


def run_stage(work: Path, spec: StageSpec, make: Callable[[Path], dict[str, Any]]) -> Stage:
    """The cached stage of this key, or a new one; builds at once that need the same one share it.

    Of several processes of one build the first makes it, and the others wait.

    Args:
        work: where stages are kept.
        make: writes the stage's files into the directory it is given and returns its metrics.

    Raises:
        EdgeError: a finished stage was damaged, or `make` failed.
    """
    described = {
        "stage": spec.name,
        "settings": dict(spec.settings),
        "inputs": dict(spec.inputs),
        "code": code_hash(spec.code),
    }
    key = sha256_json({**described, "form": _FORM})
    final = work / f"{spec.name}-{key[:16]}"
    if parallel.rank():
        return _follow(final, make, spec.together)
    with locked(work, final.name):
        if final.exists():
            stage = Stage(final, _checked(final, key), cached=True)
            parallel.broadcast("cached")
        else:
            with _written(final, resumable=spec.resumable) as partial:
                begun = time.monotonic()
                metrics = make(partial)
                manifest = _write_manifest(partial, {**described, "key": key}, metrics, begun)
            stage = Stage(final, manifest, cached=False)
        parallel.barrier()  # it is finished
        return stage


def _follow(final: Path, make: Callable[[Path], dict[str, Any]], together: bool) -> Stage:
    """A stage in a process that is not the build's first."""
    if parallel.broadcast("") == "begun" and together:
        make(_partial(final))
    parallel.barrier()  # it is finished
    return Stage(final, read_json(final / MANIFEST), cached=True)


def _partial(final: Path) -> Path:
    return final.with_name(final.name + ".partial")


@contextmanager
def _written(final: Path, *, resumable: bool) -> Iterator[Path]:
    """The directory to write a stage into, which becomes `final` when all went well."""
    partial = _partial(final)
    try:
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        parallel.broadcast("begun")
        _reset_peak_memory()
        yield partial
        publish_directory(partial, final)
    except OSError as error:
        raise os_error(error, Path(error.filename or partial)) from error


def _write_manifest(
    partial: Path, described: dict[str, Any], metrics: dict[str, Any], begun: float
) -> dict[str, Any]:
    """Write the manifest of a stage that was begun at that time of `time.monotonic`, and return it."""
    manifest = {
        **described,
        "minigpt_edge": __version__,
        "libraries": _versions(),
        "outputs": _hashes(partial),
        "seconds": round(time.monotonic() - begun, 2),
        "peak_rss_mb": round((peak_rss_bytes() or 0) / 1e6, 1),
        "metrics": metrics,
    }
    manifest[_SEAL] = sha256_json(manifest)
    write_json(partial / MANIFEST, manifest)
    return manifest


def _checked(path: Path, key: str) -> dict[str, Any]:
    """The manifest of a finished stage whose files are all as they were made."""
    hint = f"delete {path} and run the same command again: the other stages are kept"
    try:
        manifest = read_json(path / MANIFEST)
        outputs = dict(manifest["outputs"])
        if sha256_json({k: v for k, v in manifest.items() if k != _SEAL}) != manifest[_SEAL]:
            raise EdgeError(f"{path / MANIFEST} was changed", hint)
        if manifest["key"] != key:
            raise EdgeError(f"{path / MANIFEST} belongs to another stage", hint)
    except (EdgeError, KeyError, TypeError, ValueError) as error:
        raise EdgeError(f"the finished stage {path.name} is damaged ({MANIFEST})", hint) from error
    found = _hashes(path)
    wrong = sorted(name for name in {*outputs, *found} if outputs.get(name) != found.get(name))
    if wrong:
        raise EdgeError(f"the finished stage {path.name} was changed: {', '.join(wrong[:5])}", hint)
    return dict(manifest)


def _hashes(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _reset_peak_memory() -> None:
    """Let the peak be the stage's own: what earlier stages freed goes back to the system first."""
    gc.collect()
    give_back()
    with suppress(OSError):  # elsewhere than on Linux the figure is the peak since the process began
        Path("/proc/self/clear_refs").write_text("5")
