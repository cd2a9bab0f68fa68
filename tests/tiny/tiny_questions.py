"""A package of question sets, as small as can be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow

from minigpt_edge.data import tasks

WINOGRANDE = {
    "sentence": "Ann thanked Eve since _ helped.",
    "option1": "Ann",
    "option2": "Eve",
    "answer": "2",
}


def write_package(folder: Path, arrow: dict[str, list[dict[str, Any]]], docs: dict[str, list[Any]]) -> None:
    """Files as the package of question sets has them; `docs` come once per choice there."""
    for name, rows in arrow.items():
        path = folder / tasks.get_task(name).members
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)
    for name, found in docs.items():
        path = folder / tasks.get_task(name).members
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"doc_id": i, "idx": c, "doc": doc}) for i, doc in enumerate(found) for c in range(2)
        ]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
