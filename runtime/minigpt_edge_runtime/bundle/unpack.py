"""A bundle that comes as a zip file, unpacked once beside what else is cached."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import zipfile
import zlib
from pathlib import Path

from minigpt_edge_runtime.bundle.manifest import MANIFEST, inside
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, os_error, publish_directory, sha256_file

_AGAIN = "copy or download the file again"
_ZIP_ANEW = "zip the bundle's directory with deflate, as zip programs do by themselves"
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)  # what zipfile raises for such a file


def unpack(path: Path) -> Path:
    """The directory of a zipped bundle's files, unpacked now or, if it is the same file, before.

    Names are checked before anything is written: none may leave the directory, be a link, or come twice.

    Raises:
        EdgeError: it is no zip file of a bundle, is damaged, encrypted or of a kind that is not read, a name
            is not allowed, or no space is left.
    """
    try:
        folder = cache_dir() / "unpacked" / sha256_file(path)[:16]
        with zipfile.ZipFile(path) as archive:
            root = _check(path, archive)
            if not folder.is_dir():
                need_space(folder, sum(entry.file_size for entry in archive.infolist()), f"unpacking {path}")
                _extract(archive, folder)
    except RuntimeError as error:  # zipfile's word for a version or flag of the format that it does not know
        what = f"{path} is a kind of zip file that is not read here ({error})"
        raise EdgeError(what, f"{_AGAIN}; if it is whole, {_ZIP_ANEW}") from error
    except (*_DAMAGED, OSError) as error:
        # EINVAL comes from an offset before the file's beginning, which a damaged file may hold.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise os_error(error, path) from error
        raise EdgeError(f"{path} is not a whole zip file ({error})", _AGAIN) from error
    return folder / root


def cache_dir() -> Path:
    """Where what is fetched and made is kept: $MINIGPT_EDGE_CACHE, else the platform's cache folder."""
    if given := os.environ.get("MINIGPT_EDGE_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minigpt-edge"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "minigpt-edge" / "Cache"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "minigpt-edge"


def _check(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder of the zip file that is the bundle, "" for all of it."""
    names = [entry.filename for entry in archive.infolist()]
    for entry in archive.infolist():
        if not inside(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise EdgeError(
                f"{path} holds {entry.filename!r}, which would be written outside its folder",
                "do not use this file; ask where it came from",
            )
        if entry.flag_bits & 1:
            raise EdgeError(f"{path} is encrypted", "unpack it yourself, and give the directory")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise EdgeError(f"{path} is compressed in a way that is not known", _ZIP_ANEW)
    if len({name.lower() for name in names}) != len(names):
        raise EdgeError(f"{path} holds a name twice", "do not use this file; ask where it came from")
    roots = [name.removesuffix(MANIFEST).rstrip("/") for name in names if Path(name).name == MANIFEST]
    if not roots:
        raise EdgeError(f"{path} is not a zipped bundle (it has no {MANIFEST})", "zip the bundle's directory")
    return min(roots, key=len)


def _extract(archive: zipfile.ZipFile, folder: Path) -> None:
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        archive.extractall(partial)
        try:
            publish_directory(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
