"""Warnings of a file that is worse than the dense model, and the estimates in them."""

from __future__ import annotations

import copy
import json
import math
import zipfile
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from report_helpers import full_report, quality, report_of
from rich.console import Console
from source import ROOT

from minigpt_edge.report.advice import TIMES, quality_warnings, sparsity_to_gain, time_for, tokens_to_gain
from minigpt_edge.report.build_report import BuildReport, read_report
from minigpt_edge.report.page import print_table, render_html
from minigpt_edge.report.plots import waterfall_svg
from minigpt_edge.report.tables import tables, waterfall_line
from minigpt_edge.ship.card import model_card

RESULTS = ROOT / "benchmarks" / "results"


def worse(by: float, **changes: Any) -> BuildReport:
    """A report whose shipped file has `by` bits per byte more than the dense F16 one."""
    report = full_report()
    report["models"][2]["quality"] = quality(report["models"][0]["quality"]["bits_per_byte"] + by)
    report["recovery"] |= {"tokens_per_second": 600.0, "stopped": "tokens"}
    report["corpus"]["train_tokens"] = 1_000_000
    return report_of({**report, **changes})


def warned(report: BuildReport) -> BuildReport:
    return report.model_copy(update={"warnings": quality_warnings(report)})


def test_a_better_file_brings_no_warning() -> None:
    assert quality_warnings(worse(-0.01)) == ()
    assert quality_warnings(report_of({**full_report(), "models": full_report()["models"][2:]})) == ()


def test_a_worse_file_is_told_everywhere_with_what_would_mend_it() -> None:
    report = warned(worse(0.02))
    (warning,) = report.warnings
    assert warning.sure and warning.difference == pytest.approx(0.0219, abs=1e-4)
    assert warning.text.startswith("shipped Q4_0 is worse than the dense model as published: 0.022 ± 0.000")
    assert f"--time {warning.time}" in warning.text and f"--sparsity {warning.sparsity:g}" in warning.text
    assert "estimate" in warning.text
    page = render_html(report)
    assert page.index(str(escape(warning.text))) < page.index('class="tiles"')
    card = model_card(report)
    assert f"> **Warning.** {warning.text}" in card and card.index(warning.text) < card.index("## Run it")
    assert report_of(report.to_json()).warnings == report.warnings


def test_a_difference_that_may_be_chance_is_not_called_worse() -> None:
    data = worse(0.0).to_json()
    windows = data["models"][2]["quality"]["per_window"]
    for index, window in enumerate(windows):
        window["nll"] += 30 if index % 2 else -28
    data["models"][2]["quality"]["bits_per_byte"] += 0.001
    (warning,) = quality_warnings(report_of(data))
    assert not warning.sure and warning.stderr is not None and 0 < warning.difference < 2 * warning.stderr
    assert "may be chance" in warning.text and "is worse" not in warning.text
    assert "<b>Note.</b>" in render_html(warned(report_of(data)))


def test_more_to_gain_takes_more_tokens_and_a_lower_sparsity() -> None:
    report = worse(0.02)
    gains = [0.001, 0.01, 0.02, 0.04, 0.06]
    tokens = [tokens_to_gain(report, bits) for bits in gains]
    sparsities = [sparsity_to_gain(report, bits) for bits in gains]
    assert None not in tokens and tokens == sorted(tokens) and tokens[0] > report.recovery.tokens  # type: ignore
    assert None not in sparsities and sparsities == sorted(sparsities, reverse=True)  # type: ignore
    assert all(s < report.sparsity.achieved and round(s / 0.05, 6).is_integer() for s in sparsities)  # type: ignore
    times = [list(TIMES).index(time_for(report, n)) for n in (50_000, 1_000_000, 8_000_000)]  # type: ignore
    assert times == sorted(times)


def test_a_law_that_the_curve_follows_is_continued() -> None:
    """0.5 bits per byte at 100,000 tokens, 0.1 less each time that they grow e times."""
    report = worse(0.02)
    history = [
        {"tokens": n, "bits_per_byte": 0.5 - 0.1 * math.log(n / 1e5)} for n in (50_000, 75_000, 100_000)
    ]
    data = report.to_json()
    data["recovery"] |= {"history": history, "tokens": 100_000}
    assert tokens_to_gain(report_of(data), 0.1) == pytest.approx(1e5 * math.e, abs=1)
    seconds = sum(stage["seconds"] for stage in data["stages"]) + 600_000 / 600
    assert seconds < TIMES["30m"] and time_for(report_of(data), 700_000) == "30m"
    assert time_for(report_of(data), 100_000_000) is None


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("recovery", {"history": [{"tokens": 0, "bits_per_byte": 0.9}, {"tokens": 9, "bits_per_byte": 0.8}]}),
        ("recovery", {"history": [{"tokens": n, "bits_per_byte": 0.9} for n in (1, 2, 3)]}),
        ("recovery", {"stopped": "no improvement"}),
        ("corpus", {"train_tokens": 10_000}),  # it would be read too often
    ],
)
def test_no_time_is_named_where_more_is_not_known_to_help(part: str, change: dict[str, Any]) -> None:
    data = worse(0.02).to_json()
    data[part] |= change
    (warning,) = quality_warnings(report_of(data))
    assert (
        warning.tokens is None and warning.time is None and "--time" not in warning.text.split("neither")[0]
    )


def test_what_can_not_be_mended_is_said() -> None:
    data = worse(1.5).to_json()
    (warning,) = quality_warnings(report_of(data))
    assert (warning.time, warning.sparsity) == (None, None)
    assert "neither a --time nor a --sparsity" in warning.text


def test_a_limit_is_named_that_a_sparsity_would_replace() -> None:
    data = worse(0.02).to_json()
    data["sparsity"]["limits"] = {"max_size": 40_000_000}
    assert "in place of --max-size" in quality_warnings(report_of(data))[0].text


def test_without_recovery_that_is_the_advice() -> None:
    data = worse(0.02).to_json()
    del data["recovery"]
    (warning,) = quality_warnings(report_of(data))
    assert "recovery (no --no-recover)" in warning.text and warning.time is None


def runs() -> dict[str, dict[str, Any]]:
    """ "law 42%", "law 60%", "games dense, fine-tuned", … of SmolLM2 -> the recorded run."""
    recorded = json.loads((RESULTS / "domains.json").read_text())
    return {
        f"{domain} {row['model'].removeprefix('pruned ')}": row
        for part in ("domains", "sizes")
        for domain, found in recorded[part].items()
        for row in found["rows"]
        if row["type"] == "f16" and "history" in row
    }


def recorded(run: dict[str, Any], dense: float) -> BuildReport:
    """What a build's report says of a recorded run."""
    history = [step for step in run["history"] if "bits_per_byte" in step]
    pruned = history[0]["bits_per_byte"]
    stations = {"dense": {"bits_per_byte": dense}, "pruned": {"bits_per_byte": pruned}}
    sparsity = {"achieved": run["sparsity"]}
    recovery = {"history": history, "tokens": run["tokens"]}
    return report_of(
        {"name": "", "models": [], "quality_torch": stations, "sparsity": sparsity, "recovery": recovery}
    )


def end(run: dict[str, Any]) -> float:
    return float(run["history"][-1]["bits_per_byte"])


@pytest.mark.parametrize("domain", ["law", "medical", "economics", "games", "translation"])
def test_what_a_lower_sparsity_gains_fits_the_recorded_runs(domain: str) -> None:
    """From 42 % alone: what nothing removed would gain, which is the dense model fine-tuned alike."""
    found = runs()
    ours, dense = found[f"{domain} 42%"], found[f"{domain} dense, fine-tuned"]
    report = recorded(ours, dense["history"][0]["bits_per_byte"])
    gain = end(ours) - end(dense)
    estimated = max(bits / 1000 for bits in range(1000) if sparsity_to_gain(report, bits / 1000))
    assert 0.5 < estimated / gain < 1.15


def test_the_sparsities_of_law_fit_the_recorded_runs() -> None:
    found = runs()
    dense = found["law dense, fine-tuned"]["history"][0]["bits_per_byte"]
    for start, aim in (("60%", "42%"), ("60%", "20%"), ("42%", "20%")):
        more, less = found[f"law {start}"], found[f"law {aim}"]
        named = sparsity_to_gain(recorded(more, dense), end(more) - end(less))
        assert named is not None and abs(named - less["sparsity"]) < 0.11


def test_the_steps_add_up_in_table_line_and_picture() -> None:
    report = report_of(full_report())
    steps, changes = report.waterfall.steps, report.waterfall.changes()
    assert steps[0].bits_per_byte + sum(change for _, change in changes) == pytest.approx(
        steps[-1].bits_per_byte
    )
    (table,) = [table for table in tables(report) if table.key == "waterfall"]
    assert [row[0] for row in table.rows] == [step.name for step in steps]
    assert table.rows[1][1:3] == ["0.827", "+0.026"] and "29 validation windows" in table.note
    line = waterfall_line(report)
    assert line is not None and line.startswith(
        "Bits per byte on 29 validation windows: dense 0.801, vocabulary"
    )
    out = StringIO()
    print_table(report, Console(file=out, width=300))
    assert line in out.getvalue()
    picture = waterfall_svg(report)
    assert picture is not None and all(
        f"{change:+.3f}".replace("-", "−") in picture.replace("-", "−") for _, change in changes
    )
    changed = copy.deepcopy(full_report())
    changed["waterfall"]["steps"][1]["bits_per_byte"] = 0.85
    assert waterfall_svg(report_of(changed)) != picture


def test_a_report_from_before_has_neither(tmp_path: Path) -> None:
    bundle = zipfile.ZipFile(ROOT / "tests" / "edge" / "data" / "bundle-0.1.0.zip")
    (tmp_path / "report.json").write_bytes(bundle.read("golden/report.json"))
    report = read_report(tmp_path / "report.json")
    page = render_html(report)
    assert 'id="waterfall"' not in page and 'class="warning"' not in page and waterfall_line(report) is None
