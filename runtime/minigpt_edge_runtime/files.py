"""Files that appear whole or not at all: write beside, fsync, rename; and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

_MISUNDERSTOOD = (  # what Python and libraries raise when a file holds other values than they expect
    *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError),
    *(AssertionError, struct.error),
)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in 1 MiB pieces."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return sha256_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def sha256_text(text: str) -> str:
    """Hex sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems can't sync a folder
            raise
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is fsynced and renamed over `path`.

    Raises:
        EdgeError: no space is left, or the folder can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        raise os_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` holds either its old content or all of the new."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON so that `path` holds either its old content or all of the new."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_writable(path: Path) -> None:
    """EdgeError if a file can't be written there: better said before the work than after it."""
    if path.is_dir():
        raise EdgeError(f"{path} is a directory", "name a file in it")
    if not path.parent.is_dir():
        raise EdgeError(f"the folder {path.parent} does not exist", "make it, or name another file")
    if not os.access(path.parent, os.W_OK):
        raise EdgeError(f"no permission to write in {path.parent}", "choose another folder")


def read_text(path: Path, hint: str | None = None) -> str:
    """Read a UTF-8 file; EdgeError if it is missing or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise os_error(error, path) from error
    except UnicodeDecodeError as error:
        raise EdgeError(f"{path} is not UTF-8", hint) from error


def read_json(path: Path) -> Any:
    """Read a JSON file; EdgeError if it is missing, is not JSON, or holds text that UTF-8 can't hold."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # half of a pair of surrogates may have been written so
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except OSError as error:
        raise os_error(error, path) from error
    except (ValueError, RecursionError) as error:
        raise EdgeError(f"{path} is not valid JSON ({error})", "restore or delete the file") from error


@contextmanager
def understanding(path: Path | str, hint: str = "copy or make it again") -> Iterator[None]:
    """While a file's content is interpreted: what Python says of wrong values becomes an EdgeError."""
    try:
        yield
    except _MISUNDERSTOOD as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise EdgeError(f"{path} is damaged ({reason})", hint) from error


def publish_directory(partial: Path, final: Path) -> None:
    """Fsync every file in `partial` and rename it to `final`, which must not exist."""
    for path in sorted(partial.rglob("*")):
        _fsync(path)
    _fsync(partial)
    os.replace(partial, final)
    _fsync(final.parent)


def refuse_pointer(path: Path) -> None:
    """EdgeError if a file is what git leaves in place of a large one that Git LFS has not fetched."""
    start = b"version https://git-lfs.github.com/spec/"
    with open(path, "rb") as file:
        if file.read(len(start)) == start:
            raise EdgeError(
                f"{path} is a Git LFS pointer: its content was not downloaded",
                "fetch it in its repository (git lfs pull), or download the file itself",
            )


def need_space(folder: Path, size: int, what: str) -> None:
    """Raise EdgeError unless `size` bytes are free where `folder` is (or will be)."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise EdgeError(
            f"{what} needs {size / 1e6:,.0f} MB in {folder}, but only {free / 1e6:,.0f} MB are free",
            "free some space, or choose another folder",
        )


def os_error(error: OSError, path: Path) -> EdgeError:
    """The EdgeError for an operating system error on `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EdgeError(
            f"no space left on the disk while writing {path}",
            "free some space and run the same command again",
        )
    if isinstance(error, FileNotFoundError):
        return EdgeError(f"{path} does not exist", "check the path")
    if isinstance(error, PermissionError):
        return EdgeError(f"no permission to use {path}", "choose another folder, or change its permissions")
    return EdgeError(f"{path}: {error.strerror or error}", "check the disk and the path")
