"""Tables and ratios of what onnx_speed.py measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def kinds(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was timed, such as "decode at 16", as the runs name it."""
    runs = next(iter(files[0]["runs"].values()))
    return list(next(iter(runs.values()))[0]["tokens_per_second"])


def by_round(file: Mapping[str, Any], api: str, threads: str, kind: str) -> list[float]:
    """The median of each round's samples."""
    return [statistics.median(run["tokens_per_second"][kind]) for run in file["runs"][api][threads]]


def best(file: Mapping[str, Any], threads: str, kind: str) -> list[float]:
    """The rounds of the faster way to run a file."""
    return max((by_round(file, api, threads, kind) for api in file["runs"]), key=statistics.median)


def ratios(files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each of our files over each peer's file of the same model, every file run in its faster way."""
    found = []
    for our in (file for file in files if file["ours"]):
        for peer in (f for f in files if not f["ours"] and f["model"] == our["model"]):
            entry: dict[str, Any] = {"ours": our["label"], "peer": peer["label"], "model": our["model"]}
            entry["model_bytes"] = round(our["model_bytes"] / peer["model_bytes"], 4)
            entry["tokens_per_second"] = {}
            for threads in next(iter(our["runs"].values())):
                for kind in kinds(files):
                    pairs = zip(best(our, threads, kind), best(peer, threads, kind), strict=True)
                    rounds = [a / b for a, b in pairs]
                    entry["tokens_per_second"][f"{kind}, {threads} threads"] = {
                        "median": round(statistics.median(rounds), 4),
                        "lowest": round(min(rounds), 4),
                        "highest": round(max(rounds), 4),
                    }
            found.append(entry)
    return found


def table(files: Sequence[Mapping[str, Any]]) -> str:
    """One line per file and way to run it: medians over the rounds, tokens/s."""
    threads = list(next(iter(files[0]["runs"].values())))
    timed = [(n, kind) for n in threads for kind in kinds(files)]
    head = ["model", "file", "through", *(f"{kind}, {n} thr" for n, kind in timed)]
    rows = [[*head, "peak MB", "file MB", "export s", "export peak MB", "KL", "same pick"]]
    for file in files:
        for api in file["runs"]:
            row = [file["model"], file["label"], api]
            row += [f"{statistics.median(by_round(file, api, n, kind)):.0f}" for n, kind in timed]
            peaks = [run["peak_rss"] for runs in file["runs"][api].values() for run in runs]
            row += [f"{max(peaks) / 1e6:.0f}", f"{file['model_bytes'] / 1e6:.1f}"]
            made, quality = file["export"], file["quality"]
            row += [f"{made['seconds']:.0f}", f"{made['peak_rss'] / 1e6:.0f}"] if made else ["", ""]
            row += [f"{quality['kl']:.3f}", f"{quality['argmax']:.3f}"] if quality else ["", ""]
            rows.append(row)
    return _markdown(rows)


def ratio_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Our speed over the peers', median (lowest to highest of the rounds), and our size over theirs."""
    if not found:
        return ""
    rows = [["model", "ours", "÷ peer", *found[0]["tokens_per_second"], "size"]]
    for entry in found:
        speed = [
            f"{e['median']:.2f} ({e['lowest']:.2f}–{e['highest']:.2f})"
            for e in entry["tokens_per_second"].values()
        ]
        rows.append([entry["model"], entry["ours"], entry["peer"], *speed, f"{entry['model_bytes']:.2f}"])
    return "\n" + _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
