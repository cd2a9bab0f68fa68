"""What was read: the texts of a source, and what a user is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt_edge.data.columns import shorten
from minigpt_edge.data.documents import gather
from minigpt_edge.data.rows import Rows

READ_KEYS = ("read", "left_out")  # of a source in corpus.json: what was read of it and what was not
_NAMES = 3  # files of a kind that are named
_COLUMNS = 8  # columns that are named


@dataclass(frozen=True)
class Reading:
    """The texts of a source.

    Attributes:
        texts: documents, the long ones still whole.
        told: for corpus.json, "read" (one entry for each kind of file) and "left_out" (reason -> what).
        divisible: whether long texts are to be divided; not those of a domain, whose corpora are pinned.
    """

    texts: list[str]
    told: dict[str, Any] = field(default_factory=dict)
    divisible: bool = False


def part(kind: str, name: str, rows: Rows, *, shape: bool = True) -> tuple[list[str], dict[str, Any]]:
    """The documents of a file's rows, short ones gathered if they may be, and what is told of the file."""
    documents, repeated = gather(rows.texts) if shape else (rows.texts, 0)
    told = {"kind": kind, "files": 1, "names": [name], **rows.about, "documents": len(documents)}
    if len(documents) < len(rows.texts):
        told |= {"gathered": len(rows.texts), "repeated": repeated}
    if rows.texts:
        told["sample"] = shorten(rows.texts[0])
    return documents, told


def merged(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The parts with those of the same kind, column and delimiter as one."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in parts:
        key = (one["kind"], one.get("column"), one.get("delimiter"))
        if key not in groups:
            groups[key] = dict(one)
            continue
        group = groups[key]
        group["names"] = [*group["names"], *one["names"]][:_NAMES]
        for name in ("files", "rows", "used", "documents", "gathered", "repeated"):
            if name in one:
                group[name] = group.get(name, 0) + one[name]
        if one.get("skipped"):
            group["skipped"] = dict(Counter(group["skipped"]) + Counter(one["skipped"]))
            first = {why: f"{one['names'][0]} {where}" for why, where in one["first"].items()}
            group["first"] = {**first, **group["first"]}
        if "sample" not in group and "sample" in one:
            group["sample"] = one["sample"]
    return list(groups.values())


def read_lines(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a user is told of the sources in corpus.json: a line a kind of file, one for what is left out."""
    return [line for source in sources for line in _source_lines(source)]


def _source_lines(source: Mapping[str, Any]) -> list[str]:
    lines = [_part_line(one) for one in source.get("read", ())]
    if left := source.get("left_out"):
        lines.append("left out: " + "; ".join(f"{what} ({why})" for why, what in left.items()))
    return lines


def _part_line(told: Mapping[str, Any]) -> str:
    names, count = ", ".join(told["names"]), told["files"]
    more = ", …" if count > _NAMES else ""
    line = names if count == 1 else f"{count:,} {told['kind']}s ({names}{more})"
    unit = "documents" if told["kind"] == "package" else "rows"
    facts = [f"{told['rows']:,} {unit}"] if "rows" in told else []
    if told.get("delimiter"):
        facts[0] += f" separated by {told['delimiter']}s"
    if column := told.get("column"):
        others = [name for name in told["columns"] if name != column]
        listed = ", ".join(others[:_COLUMNS]) + (", …" if len(others) > _COLUMNS else "")
        facts.append(f"column {column}" + (f" (not {listed})" if others else ""))
    line += f": {', '.join(facts)}" if facts else ""
    skipped = [_skipped(told, why, count) for why, count in told.get("skipped", {}).items()]
    if skipped:
        line += f"; skipped {', '.join(skipped)}"
    if told.get("gathered"):
        repeated = f", {told['repeated']:,} repeated left out" if told["repeated"] else ""
        many = "s" * (told["documents"] > 1)
        line += f"; short ones, gathered into {told['documents']:,} document{many}{repeated}"
    mark = ";" if ":" in line else ":"
    return f"{line}{mark} {told['sample']}" if "sample" in told else line


def _skipped(told: Mapping[str, Any], why: str, count: int) -> str:
    where = told.get("first", {}).get(why)
    return f"{count:,} {why}" + (f" ({'' if count == 1 else 'first '}{where})" if where else "")
