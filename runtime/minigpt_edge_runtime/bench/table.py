"""A latency report for people."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

NOISY = 0.1  # spread of a test's runs, as a share of their mean, above which they say little
Row = tuple[str, str, str, str]


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print model, machine and settings, then the figures with their spread."""
    for line in _heading(report):
        console.print(escape(line), highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("spread", justify="right", style="dim", no_wrap=True)
    table.add_column("", style="dim", no_wrap=True)
    for row in [*_speed_rows(report), *_other_rows(report)]:
        table.add_row(*map(escape, row))
    console.print()
    console.print(table, highlight=False)


def noise(report: Mapping[str, Any]) -> str | None:
    """What to say if the runs of a test differ so much that other programs must have been in the way."""
    shares = [test["stddev_ts"] / test["avg_ts"] for test in [*report["prefill"], *report["decode"]]]
    if max(shares) <= NOISY:
        return None
    return (
        f"the runs of a test scatter by {max(shares):.0%}: other programs are busy, bench again without them"
    )


def _heading(report: Mapping[str, Any]) -> Iterator[str]:
    artefact, device, settings = report["artefact"], report["device"], report["settings"]
    name = artefact["bundle"] or artefact["name"] or artefact["file"]
    count = artefact["parameters"]
    size = f"{artefact['bytes'] / 1e6:,.1f} MB" + (f", {count / 1e6:,.1f} M parameters" if count else "")
    yield f"{name}  {artefact['quantization'] or artefact['format']}, {size} ({artefact['file']})"
    cores = f"{device['physical_cores'] or device['cores']} cores"
    memory = device["memory_bytes"]
    states = [device["governor"], device["power_source"] and f"on {device['power_source']}"]
    yield ", ".join(
        [
            device["cpu"] or device["architecture"],
            cores,
            *([f"{memory / 1e9:,.0f} GB"] if memory else []),
            *[state for state in states if state],
            device["system"],
        ]
    )
    cpus, limit = settings["pinned_cpus"], settings["memory_limit_bytes"]
    yield ", ".join(
        [
            f"{report['runtime']['package']}",
            f"profile {report['profile']}",
            _threads(report) + (f" on CPU {', '.join(map(str, cpus))}" if cpus else ""),
            f"median of {settings['repetitions']}",
            *([f"at most {limit / 1e6:,.0f} MB"] if limit else []),
        ]
    )


def _speed_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    load = report["load"]
    first = f"the first {load['first_ns'] / 1e6:,.0f} ms" if "first_ns" in load else ""
    yield (
        "load",
        _ms(statistics.median(load["samples_ns"]) / 1e6),
        _ms(load["stddev_ns"] / 1e6, "± "),
        first,
    )
    for test in report["prefill"]:
        times = test["ttft_ms"]
        about = f"first token after {test['n_prompt']:,}"
        yield (about, _ms(times["p50"]), _ms(test["stddev_ns"] / 1e6, "± "), _tail(times))
    for test in report["prefill"]:
        yield (f"prefill {test['n_prompt']:,}", *_rate(test), _joules(test))
    for test in report["decode"]:
        share = test["roofline_share"]
        notes = ["" if share is None else f"{share:.0%} of memory bandwidth", _joules(test)]
        yield (_at("decode", test), *_rate(test), ", ".join(filter(None, notes)))
    for test in report["decode"]:
        yield (_at("between tokens", test), _ms(test["itl_ms"]["p50"]), "", _tail(test["itl_ms"]))


def _other_rows(report: Mapping[str, Any]) -> Iterator[Row]:
    memory, bandwidth = report["memory"], report["roofline"]["read_bandwidth_bytes_per_second"]
    loaded = memory["rss_after_load_bytes"]
    after = "" if loaded is None else f"{loaded / 1e6:,.0f} MB after loading"
    peak = memory["peak_rss_bytes"]
    yield ("peak memory", "unknown" if peak is None else f"{peak / 1e6:,.0f} MB", "", after)
    yield ("memory bandwidth", f"{bandwidth / 1e9:,.1f} GB/s", "", f"read by {_threads(report)}")
    if report["energy"]:
        source = report["energy"]["source"]
        decode, prefill = (report["energy"][f"{what}_joules_per_token"] for what in ("decode", "prefill"))
        yield ("energy", f"{decode:.3g} J/token", "", f"prefill {prefill:.3g} J/token, by {source}")
    quality = report["quality"]
    if quality:
        error = "" if quality["stderr"] is None else f"± {quality['stderr']:.4f}"
        split = f" of {quality['split']}" if quality["split"] else ""
        yield (
            "bits per byte",
            f"{quality['bits_per_byte']:.4f}",
            error,
            f"{quality['windows']} windows{split}",
        )
        choice = quality["multiple_choice"]
        if choice:
            about = f"{choice['questions']} questions, guessing {choice['chance']:.0%}"
            yield ("multiple choice", f"{choice['accuracy']:.1%}", f"± {choice['stderr']:.1%}", about)


def _at(what: str, test: Mapping[str, Any]) -> str:
    return f"{what} at {test['n_depth']:,}"


def _rate(test: Mapping[str, Any]) -> tuple[str, str]:
    return f"{statistics.median(test['samples_ts']):,.1f} tokens/s", f"± {test['stddev_ts']:,.1f}"


def _ms(value: float, sign: str = "") -> str:
    return f"{sign}{value:,.1f} ms" if value < 1000 else f"{sign}{value / 1000:,.2f} s"


def _tail(times: Mapping[str, float]) -> str:
    return f"p90 {_ms(times['p90'])}, p99 {_ms(times['p99'])}"


def _joules(test: Mapping[str, Any]) -> str:
    used = test.get("joules_per_token")
    return "" if used is None else f"{used:.3g} J/token"


def _threads(report: Mapping[str, Any]) -> str:
    count = report["settings"]["n_threads"]
    return f"{count} thread{'s' * (count != 1)}"
