"""Files as text: plain or compressed, UTF-8 alone, with errors that say where a file is something else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error

PACKED = (".gz", ".bz2", ".xz", ".zst")
_HEAD = 1 << 16  # bytes that show what a file is


def kind_of_file(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: ".jsonl" of texts.jsonl and texts.jsonl.gz."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in PACKED else name.suffix


def _open_bytes(path: Path) -> IO[bytes]:
    """A file's content, unpacked."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return cast(IO[bytes], bz2.open(path))
        case ".xz":
            return cast(IO[bytes], lzma.open(path))
        case ".zst":
            import pyarrow as pa

            return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return path.open("rb")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """EdgeError for a file that the system can't read, or whose compressed content is damaged."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise os_error(error, path) from error
        what = f"{path} is damaged or cut short ({str(error).strip() or type(error).__name__})"
        raise EdgeError(what, "download or save it again") from error


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A file as a stream of text, `newline` as in `open`.

    Raises:
        EdgeError: it can't be read, is damaged, binary or not UTF-8; also while the stream is read.
    """
    with readable(path):
        with _open_bytes(path) as data:
            _refuse_other_than_text(data.read(_HEAD), path)
        try:
            with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline=newline) as text:
                yield text
        except UnicodeDecodeError as error:
            raise _not_utf8(path) from error


def _refuse_other_than_text(head: bytes, path: Path) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        hint = f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > {path.stem}.utf8{path.suffix}"
        raise EdgeError(f"{path} is encoded in UTF-16, not UTF-8", hint)
    if (zero := head.find(b"\0")) >= 0:
        raise EdgeError(f"{path} is binary: there is a zero byte at offset {zero:,}", "give text files")


def _not_utf8(path: Path) -> EdgeError:
    """Where it is not: the stream's own error counts from the last bytes that it fetched."""
    at, new = 0, f"{path.stem}.utf8{path.suffix}"
    with _open_bytes(path) as data:
        for line in data:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return EdgeError(
                    f"{path} is not UTF-8: byte 0x{line[error.start]:02x} at offset {at + error.start:,}",
                    f"convert it, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > {new}",
                )
            at += len(line)
    return EdgeError(f"{path} changed while it was read", "give it again when nothing writes to it")


def storable(text: str) -> str:
    """A text that can be written: a lone surrogate, as JSON and names of files can hold it, can't."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def decoded(path: Path) -> str:
    """A file's text, "\\r\\n" and "\\r" as "\\n"; EdgeError as `open_text`, and for a zero byte anywhere."""
    with open_text(path) as file:
        text = file.read()
    if (zero := text.find("\0")) >= 0:
        zero = len(text[:zero].encode())
        raise EdgeError(f"{path} is binary: there is a zero byte at offset {zero:,}", "give text files")
    return text
