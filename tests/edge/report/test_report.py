"""The report says what was measured, stands alone, is the same every time, and does with parts missing."""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from report_helpers import full_report, model, report_of
from rich.console import Console
from source import ROOT

from minigpt_edge.report.build_report import Window, read_report
from minigpt_edge.report.page import print_table, render_html, write_report
from minigpt_edge.report.plots import recovery_svg, size_quality_svg, standalone, widths_svg
from minigpt_edge.report.tables import headline, paired_difference, tables
from minigpt_edge_runtime.errors import EdgeError

DATA = ROOT / "tests" / "edge" / "data"
_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Collects a page's text, attributes and tables; fails on tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_page_says_what_the_report_holds() -> None:
    page = Page(render_html(report_of(full_report())))
    rows = {row[0]: row[1:] for row in page.rows}
    assert "47.8 MB in place of 270.9 MB (18 %)" in page.text
    assert "267.6" in rows["shipped Q4_0"] or any("267.6" in row for row in page.rows)
    assert rows["vocabulary"] == ["49,152", "16,312", "66.8 %"]
    assert rows["after pruning"][-1] == f"{0.912 / 0.801:.3f}"
    assert rows["corpus"] == ["6.1 s", "412 MB"]
    assert rows["calibrate"][0] == "cached"
    assert rows["total"][0] == "8 min 24 s"  # the cached stage took no time in this build
    assert rows["command"] == ["minigpt-edge build --domain law"]
    assert rows["KV groups"][1] == "+0.014"
    assert sum(tag == "svg" for tag, _ in page.seen) == 4


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = render_html(report_of(full_report()))
    for tag, attributes in Page(html).seen:
        assert tag not in ("script", "link", "iframe", "img")
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))


def test_pictures_are_well_formed_and_their_ids_do_not_clash() -> None:
    html = render_html(report_of(full_report()))
    pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    ids = [
        element.get("id")
        for svg in pictures
        for element in ElementTree.fromstring(svg).iter()
        if element.get("id")
    ]
    assert len(pictures) == 4 and len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', "".join(pictures)))
    assert used <= set(ids)


def test_every_colour_follows_the_scheme() -> None:
    svg = size_quality_svg(report_of(full_report()))
    assert svg is not None
    assert re.findall(r"#[0-9a-fA-F]{6}\b", svg) == []
    alone = standalone(svg)
    ElementTree.fromstring(alone)
    for variable in set(re.findall(r"var\((--\w+)\)", svg)):
        assert alone.count(f"{variable}:#") == 2  # a light and a dark value


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    write_report(report_of(full_report()), tmp_path / "a")
    write_report(report_of(full_report()), tmp_path / "b")
    for name in ("report.json", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "report.json").read_text()) == full_report()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["report.html", "report.json"]


def test_a_folder_that_cannot_be_written_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    (tmp_path / "report.json" / "inside").write_text("a folder in the way")
    with pytest.raises(EdgeError) as caught:
        write_report(report_of(full_report()), tmp_path)
    assert caught.value.hint


@pytest.mark.whole
@pytest.mark.parametrize("source", ["bundle-0.1.0.zip", "build.json"])
def test_a_report_on_disk_is_read_and_written_as_it_is(source: str, tmp_path: Path) -> None:
    path = ROOT / "benchmarks" / "results" / source
    if source.endswith(".zip"):
        path = tmp_path / "report.json"
        path.write_bytes(zipfile.ZipFile(DATA / source).read("golden/report.json"))
    report = read_report(path)
    assert report.to_json() == json.loads(path.read_text())
    page = Page(render_html(report))
    assert report.name in page.text and "None" not in page.text
    write_report(report, tmp_path / "again")
    if source.endswith(".zip"):  # nothing of it is of an older version: the order of the keys is the same too
        assert (tmp_path / "again" / "report.json").read_bytes() == path.read_bytes()


def test_unknown_keys_are_kept_and_wrong_ones_refused(tmp_path: Path) -> None:
    data = full_report()
    data["models"][0]["colour"] = data["news"] = "red"
    assert report_of(data).to_json() == data
    del data["models"][1]["role"]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(data))
    with pytest.raises(EdgeError, match=r"not the report of a build \(models.1.role: field required\)"):
        read_report(path)


def missing_parts() -> list[dict[str, Any]]:
    report = full_report()
    optional = sorted(set(report) - {"name", "models"})
    parts = [{key: value for key, value in report.items() if key != gone} for gone in optional]
    bare_models = [{"label": "shipped", "role": "shipped"}]
    parts.append({"name": "only", "models": bare_models})
    parts.append({"name": "none", "models": []})
    for gone in ("bytes", "quality", "speed", "parameters", "sha256", "quantization"):
        parts.append(
            {**report, "models": [{k: v for k, v in m.items() if k != gone} for m in report["models"]]}
        )
    parts.append({**report, "models": [m for m in report["models"] if m["role"] == "shipped"]})
    parts.append({**report, "recovery": {"history": [], "tokens": 0, "seconds": None}})
    return parts


@pytest.mark.whole
@pytest.mark.parametrize("report", missing_parts(), ids=range(len(missing_parts())))
def test_parts_may_be_missing(report: dict[str, Any]) -> None:
    page = Page(render_html(report_of(report)))
    assert report["name"] in page.text
    assert "None" not in page.text and "nan" not in page.text
    print_table(report_of(report), Console(file=StringIO(), width=100))


def test_text_from_outside_is_escaped() -> None:
    report = full_report()
    report["name"] = report["domain"] = report["models"][2]["label"] = "<script>alert(1)</script>&"
    html = render_html(report_of(report))
    assert "<script" not in html
    assert report["name"] in Page(html).text


def test_the_terminal_shows_the_figures_and_no_markup() -> None:
    report = full_report()
    report["models"][2]["label"] = "shipped [bold]Q4_0[/bold]"
    out = StringIO()
    print_table(report_of(report), Console(file=out, width=140))
    shown = out.getvalue()
    assert "[bold]Q4_0[/bold]" in shown
    for figure in ("47.8 MB", "0.632 ± 0.030", "267.6", "42.1 %"):
        assert figure in shown


def test_the_headline_compares_with_the_dense_model_at_the_same_quantization() -> None:
    report = full_report()
    assert "268 tokens per second, 2.00 × the dense model at Q4_0" in headline(report_of(report))
    report["models"][1]["quantization"] = "Q8_0"
    assert "× the dense model" not in headline(report_of(report))


def test_several_shipped_files_are_all_drawn() -> None:
    report = full_report()
    report["models"].append(model("shipped Q8_0", "shipped", 80_000_000, 0.63, 190.0))
    svg = size_quality_svg(report_of(report))
    assert svg is not None
    for label in ("dense F16", "dense Q4_0", "shipped Q4_0", "shipped Q8_0"):
        assert label in svg


def test_pictures_follow_the_figures() -> None:
    report = full_report()
    changed = copy.deepcopy(report)
    changed["sparsity"]["ffn_width"][1][0] = 32
    assert widths_svg(report_of(changed)) != widths_svg(report_of(report))
    changed["quality_torch"]["dense"]["bits_per_byte"] = 0.5
    assert recovery_svg(report_of(changed)) != recovery_svg(report_of(report))
    assert size_quality_svg(report_of(changed)) == size_quality_svg(report_of(report))


def test_the_note_gives_the_paired_difference() -> None:
    note = tables(report_of(full_report()))[0].note
    assert "shipped Q4_0 − dense F16, window by window: -0.197" in note


def test_paired_difference_is_surer_than_the_two_errors() -> None:
    hard = [0.5, 1.0, 1.5, 2.0]
    ours = [Window(nll=1000 * h * 0.9, bytes=1000) for h in hard]
    theirs = [Window(nll=1000 * h, bytes=1000) for h in hard]
    found = paired_difference(ours, theirs)
    assert found is not None
    difference, error = found
    assert difference == pytest.approx(-0.125 / 0.693147, rel=1e-4)
    assert error == pytest.approx(
        0.032275 / 0.693147, rel=1e-3
    )  # sample deviation of 0.05…0.2, over the root of four
    assert paired_difference(ours, theirs[:3]) is None
    assert paired_difference(ours, []) is None
