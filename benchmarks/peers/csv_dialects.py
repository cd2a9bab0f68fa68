"""How many files of the tests' CSV dialects each reader reads right, when it has to find the dialect itself.

    python benchmarks/peers/csv_dialects.py [--out FILE.json]

Right: the column `text` holds the texts that were written, white space at their ends apart. The files are
those of tests/edge/data/test_csv_dialects.py, which this project's reader was made with: for it they are no
test.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Row = list[str]


def ours(path: Path) -> list[str]:
    from minigpt_edge.data.folders import read_files

    return read_files(path).texts


def sniffer(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8-sig")
    return _texts(list(csv.reader(io.StringIO(text, newline=""), csv.Sniffer().sniff(text[:65536]))))


def clevercsv(path: Path) -> list[str]:
    import clevercsv

    text = path.read_bytes().decode("utf-8-sig")
    dialect = clevercsv.Sniffer().sniff(text[:65536])
    return _texts(list(clevercsv.reader(io.StringIO(text, newline=""), dialect)))


def pandas(path: Path) -> list[str]:
    import pandas

    return [str(text) for text in pandas.read_csv(path, sep=None, engine="python", dtype=str)["text"]]


def duckdb(path: Path) -> list[str]:
    import duckdb

    relation = duckdb.read_csv(str(path), all_varchar=True)
    at = relation.columns.index("text")
    return [str(row[at]) for row in relation.fetchall()]


def _texts(rows: list[Row]) -> list[str]:
    rows = [row for row in rows if row]
    at = rows[0].index("text")
    return [row[at] for row in rows[1:]]


Readers = dict[str, Callable[[Path], list[str]]]
OURS: Readers = {"minigpt-edge": ours}
PEERS: Readers = {
    "csv.Sniffer": sniffer,
    "clevercsv": clevercsv,
    "pandas, sep=None": pandas,
    "duckdb": duckdb,
}


def read_all(folder: Path, readers: Readers) -> dict[str, dict[str, str]]:
    """Reader -> file -> "right", "wrong" (other texts, and no error) or the error."""
    truth: dict[str, list[str]] = json.loads((folder / "truth.json").read_text())
    found: dict[str, dict[str, str]] = {}
    for name, read in readers.items():
        for file, texts in truth.items():
            try:
                same = [text.strip() for text in read(folder / file)] == [text.strip() for text in texts]
                what = "right" if same else "wrong"
            except Exception as error:  # every library raises its own
                what = f"error: {type(error).__name__}"
            found.setdefault(name, {})[file] = what
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/csv-dialects.json")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read_all(options.read, PEERS)))
        return
    sys.path[:0] = [str(ROOT / "tests" / "edge" / "data")]
    from test_csv_dialects import CASES

    from benchmarks.peers.environments import PINS, python

    with tempfile.TemporaryDirectory() as name:
        truth = {}
        for number, (case, (content, texts)) in enumerate(CASES.items()):
            file = f"{number:02} {case}.csv"
            (Path(name) / file).write_text(content, newline="", encoding="utf-8")
            truth[file] = texts
        (Path(name) / "truth.json").write_text(json.dumps(truth))
        command = [str(python("csv")), __file__, "--read", name]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = read_all(Path(name), OURS) | json.loads(result.stdout)
    summary: dict[str, Any] = {"files": len(truth), "pins": PINS["csv"], "python": sys.version.split()[0]}
    summary["readers"] = {
        reader: {
            "right": sum(what == "right" for what in files.values()),
            "wrong, without an error": [file for file, what in files.items() if what == "wrong"],
            "errors": {file: what for file, what in files.items() if what.startswith("error")},
        }
        for reader, files in found.items()
    }
    options.out.write_text(json.dumps(summary, indent=2) + "\n")
    for reader, counts in summary["readers"].items():
        wrong, errors = len(counts["wrong, without an error"]), len(counts["errors"])
        print(f"{reader:20} {counts['right']:3} right, {wrong:2} wrong without an error, {errors:2} errors")


if __name__ == "__main__":
    main()
