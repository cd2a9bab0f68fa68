"""Files and folders as texts: what is read, what is left out and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.data.arrow_rows import read_arrow, read_parquet, read_saved_dataset
from minigpt_edge.data.csv_rows import read_csv
from minigpt_edge.data.decoding import PACKED, decoded, kind_of_file
from minigpt_edge.data.json_rows import NotRows, read_json, read_json_lines
from minigpt_edge.data.reading import Reading, merged, part
from minigpt_edge.data.rows import Rows
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import refuse_pointer

TEXTS = (".txt", ".md")
ROWS: dict[str, Callable[[Path, Sequence[str]], Rows]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
UNKNOWN = "not a known kind"
SAVED = "saved dataset"  # a folder that datasets' save_to_disk wrote
# Files that describe the data beside them, and are read only where there are no data files.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|changes|contributing|code_of_conduct|citation|authors|"
    r"dataset_?card|data_?card|requirements)\b.*",
    re.IGNORECASE,
)
_KNOWN = (
    f"known kinds: {', '.join([*TEXTS, *ROWS])}, also as {', '.join(PACKED)}; folders of datasets' "
    "save_to_disk"
)
_SUFFIXES = 5  # that are named of the files that are not read


def kind_of(path: Path) -> str | None:
    """What a path is read as: a suffix of `TEXTS` or `ROWS`, `SAVED`, or None if it is not read."""
    if path.is_dir():
        return SAVED if (path / "state.json").is_file() and (path / "dataset_info.json").is_file() else None
    kind = kind_of_file(path)
    if kind in (".parquet", ".arrow") and path.suffix.lower() != kind:  # what is in them is compressed
        return None
    return kind if kind in TEXTS or kind in ROWS else None


def read_files(path: Path, wanted: Sequence[str] = ()) -> Reading:
    """The texts of a file, or of every file of a known kind in a folder and the folders in it.

    A txt or md file is one text; jsonl, json, csv, tsv, parquet and saved datasets have one per row, in the
    column that `columns.choose_column` chooses. Short rows of a file are gathered, so are short text files.

    Raises:
        EdgeError: missing, empty, binary, not UTF-8, of an unknown kind, damaged, without a column of text.
    """
    if not path.exists():
        raise EdgeError(
            f"{path} does not exist", "give a text file, a folder, or a hub dataset id (org/name)"
        )
    left: dict[str, list[Path]] = {}
    files = [path]
    if path.is_dir() and kind_of(path) is None:
        files, left = _in_folder(path)
    elif kind_of(path) is None:
        raise EdgeError(f"{path}: files of kind {path.suffix or 'without a suffix'} are not read", _KNOWN)
    documents, told = _read_all(files, path, wanted, left)
    if not any(document.strip() for document in documents):
        why = Counter[str]()
        for one in told:
            why.update(one.get("skipped", {}))
        reasons = f" ({', '.join(f'{count:,} rows {name}' for name, count in why.items())})" if why else ""
        raise EdgeError(f"{path} is empty: there is no text in it{reasons}", "give files with text")
    left_out = {why: _named(paths, path) for why, paths in left.items() if paths}
    return Reading(documents, {"read": told, **({"left_out": left_out} if left_out else {})}, divisible=True)


def _read_all(
    files: Sequence[Path], root: Path, wanted: Sequence[str], left: dict[str, list[Path]]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Documents, and what is told of the files; adds to `left` what turns out to hold no data."""
    documents: list[str] = []
    told: list[dict[str, Any]] = []
    for file in files:
        kind = kind_of(file) or ""
        if file.is_file():
            refuse_pointer(file)
        if kind in TEXTS:
            continue
        try:
            rows = read_saved_dataset(file, wanted) if kind == SAVED else ROWS[kind](file, wanted)
        except NotRows:
            if file == root:
                raise
            left.setdefault("JSON without rows", []).append(file)
            continue
        made, about = part(kind if kind == SAVED else f"{kind[1:]} file", _name(file, root), rows)
        documents += made
        told.append(about)
    texts = [file for file in files if kind_of(file) in TEXTS]
    if root not in texts:
        texts = _without_descriptions(texts, root, left, has_data=bool(told))
    if texts:
        whole = [text for file in texts if (text := decoded(file)).strip()]
        made, about = part("text file", _name(texts[0], root), Rows(whole, {}))
        about |= {"files": len(texts), "names": [_name(file, root) for file in texts[:3]]}
        if blank := len(texts) - len(whole):
            about |= {"skipped": {"empty": blank}, "first": {}}
        documents, told = made + documents, [about, *told]
    return documents, merged(told)


def _without_descriptions(
    texts: list[Path], root: Path, left: dict[str, list[Path]], *, has_data: bool
) -> list[Path]:
    """The text files without a README and the like, where there are data files.

    Raises:
        EdgeError: such files are all that could be read, and there are others that can't.
    """
    about = [file for file in texts if _ABOUT.fullmatch(file.name)]
    unknown = [*left.get(UNKNOWN, []), *left.get("JSON without rows", [])]
    if has_data:
        left["about the data"] = about
        return [file for file in texts if file not in about]
    if len(about) == len(texts) and (unknown or not about):
        what = f"nothing that is read but {_named(about, root)}" if about else "no text files"
        there = f" (there: {_named(unknown, root)})" if unknown else ""
        raise EdgeError(f"{root} holds {what}{there}", _KNOWN)
    return texts


def _in_folder(folder: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The files of a folder that are read, sorted, and the others by the reason why not."""
    files: list[Path] = []
    left: dict[str, list[Path]] = {}
    saved: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if any(parent in saved for parent in path.parents):
            continue
        kind = kind_of(path)
        if any(name.startswith(".") for name in path.relative_to(folder).parts):
            if path.is_file():
                left.setdefault("hidden", []).append(path)
        elif path.is_symlink() and not path.is_file():
            left.setdefault("a link that is not followed", []).append(path)
        elif kind == SAVED:
            saved.append(path)
            files.append(path)
        elif path.is_file():
            if kind is None:
                left.setdefault(UNKNOWN, []).append(path)
            elif not path.stat().st_size:
                left.setdefault("empty", []).append(path)
            elif path.name != "dataset_dict.json":  # it lists the saved datasets beside it
                files.append(path)
    return files, left


def _name(path: Path, root: Path) -> str:
    return path.name if path == root else str(path.relative_to(root))


def _named(paths: Sequence[Path], root: Path) -> str:
    """A few files by name, many by suffix."""
    if len(paths) <= 3:
        return ", ".join(_name(path, root) for path in paths)
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    shown = [f"{count:,} {suffix}" for suffix, count in counts.most_common(_SUFFIXES)]
    return f"{len(paths):,} files: {', '.join(shown)}{', …' if len(counts) > _SUFFIXES else ''}"
