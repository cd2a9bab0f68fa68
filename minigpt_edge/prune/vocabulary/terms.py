"""The terms file of --keep-tokens: words to keep in the vocabulary although the corpus lacks them."""

from __future__ import annotations

from pathlib import Path

from minigpt_edge_runtime.errors import EdgeError


def read_terms(path: Path) -> list[str]:
    """The terms of a UTF-8 file, one a line.

    Raises:
        EdgeError: the file is missing, not UTF-8, or empty.
    """
    try:
        terms = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise EdgeError(
            f"--keep-tokens: {path} can't be read ({error.strerror})", "check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise EdgeError(
            f"--keep-tokens: {path} is not UTF-8 (byte {error.start})", "save it as UTF-8"
        ) from error
    if not any(terms):
        raise EdgeError(f"--keep-tokens: {path} holds no term", "write one term a line")
    return sorted({term for term in terms if term})
