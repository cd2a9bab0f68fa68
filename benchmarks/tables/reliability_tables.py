"""The figures of docs/reliability.md from reliability.json, memory.json, fuzz.json and serve_load.json.

Used by benchmarks/tables/tables.py; what is between the two marks of the page is written here.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from minigpt_edge.report.tables import MISSING, Table, duration, markdown, number

BEGIN, END = "<!-- figures: benchmarks/tables/tables.py -->\n", "<!-- /figures -->\n"


def outputs(results: Path, docs: Path) -> dict[Path, str]:
    """The page, if it is there, with the figures of the results that are."""
    page = docs / "reliability.md"
    if not page.exists():
        return {}
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: {page} lacks the lines {BEGIN.strip()} and {END.strip()}")
    made = {"reliability": _disturbed, "memory": _memory, "fuzz": _fuzz, "serve_load": _load}
    parts = [
        part
        for name, table in made.items()
        if (results / f"{name}.json").exists()
        for part in table(json.loads((results / f"{name}.json").read_text(encoding="utf-8")))
    ]
    return {page: before + begin + "\n".join(f"{part}\n" for part in parts) + end + after}


def _table(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> str:
    return f"**{title}**\n\n{markdown(Table('', title, columns, rows, note))}\n"


def _origin(result: dict[str, Any]) -> str:
    """What a result was measured on, as a sentence to append."""
    known = [(result.get("device") or {}).get("cpu"), result.get("date")]
    known += [f"commit {result['commit'][:9]}"] if result.get("commit") else []
    said = ", ".join(part for part in known if part)
    return f" {said}." if said else ""


def _disturbed(result: dict[str, Any]) -> list[str]:
    rows = []
    if kills := result.get("kills"):
        ended = Counter(row["signal"] for row in kills["kills"])
        said = ", ".join(f"{count} by {name}" for name, count in sorted(ended.items()))
        rows.append([f"builds ended ({said}) and resumed to the same files", _good(kills["kills"])])
        rows.append(["writes of one build, over which these were spread", f"{kills['moments']:,}"])
    if runs := result.get("disk", {}).get("runs"):
        shares = ", ".join(f"{row['share']:.0%}" for row in runs)
        rows.append([f"builds with {shares} of the disk they need, resumed with more", _good(runs)])
    if filled := result.get("disk", {}).get("filled"):
        rows.append(["builds whose disk filled up while they wrote, resumed with room", _good(filled)])
    for name, row in result.get("twice", {}).items():
        what = {"repeated": "the same build in another directory, equal to the byte"}
        rows.append([what.get(name, "two builds into one directory at once: one refused"), _yes(row["ok"])])
    return [_table("Disturbed builds", ["", ""], rows, _origin(result).strip())]


def _memory(result: dict[str, Any]) -> list[str]:
    cells = []
    for row in result["rows"]:
        kind = {"prune": "pruning", "recover": "recovery with adapters" if row["lora"] else "recovery"}
        sizes = [row[name] for name in ("limit_bytes", "estimated_bytes", "peak_bytes")]
        said = [f"{size / 2**30:.2f} GiB" if size else MISSING for size in sizes]
        cells.append([kind[row["stage"]], *said, duration(row["seconds"])])
    columns = ["", "--max-memory", "estimated", "peak measured", "time"]
    note = f"{result['model']}, {result['calibration_tokens']:,} tokens of calibration, "
    note += f"{result['recover_tokens']:,} of recovery, {result['threads']} threads."
    note += _origin(result)
    return [_table("Memory", columns, cells, note)]


def _good(rows: list[dict[str, Any]]) -> str:
    return f"{sum(row['ok'] for row in rows)} of {len(rows)}"


def _yes(good: bool) -> str:
    return "yes" if good else "**no**"


def _fuzz(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in result["subjects"].items():
        counts = [f"{one.get(what, 0):,}" for what in ("sound", "refused", "bad")]
        rows.append([name, *counts, number(one["slowest"], 1, "s")])
    columns = ["", "read", "refused with a message", "anything else", "slowest"]
    note = f"{result['cases']:,} damaged files, seed {result['seed']}.{_origin(result)}"
    return [_table("Damaged files", columns, rows, note)]


def _load(result: dict[str, Any]) -> list[str]:
    memory = [f"{value / 1e6:.1f} MB" for value in result["rss_bytes"]]
    done, seconds = result["outcomes"], result["answer_seconds"]
    rows = [
        ["answered", f"{done.get('answered', 0):,}"],
        ["hung up in the middle", f"{done.get('left', 0):,}"],
        ["refused because too many waited, and asked again", f"{result['refused']:,}"],
        ["seconds to an answer, p50 / p99", f"{number(seconds['p50'], 2)} / {number(seconds['p99'], 2)}"],
        ["memory after 100 answers / at the end", f"{memory[1]} / {memory[-1]}"],
        ["open files at the end", str(result["open_files"])],
    ]
    note = f"{result['bundle']}, {result['clients']} clients at a time, {result['tokens']} tokens each."
    note += _origin(result)
    return [_table("The endpoint under load", ["", ""], rows, note)]
