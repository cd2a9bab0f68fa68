"""The page of compare, looked at in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from latency_reports import make_report, without_optional_facts, write_reports

from minigpt_edge.cli import cli
from minigpt_edge.report.compare_page import render_page
from minigpt_edge_runtime.compare.comparison import compare_files

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VIEWS: list[tuple[int, Literal["light", "dark"]]] = [(1280, "light"), (360, "light"), (1280, "dark")]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# The least contrast of any text with what is behind it, by WCAG's formula, and which text that is.
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const linear = v => v <= 10.31 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(e instanceof SVGElement ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent];
  }
  return worst;
}"""

# Width and height of the pictures that are shown, and their texts that are cut off or lie on another.
PICTURES = """() => {
  const all = [...document.querySelectorAll('figure [role=img] svg')];
  const shown = all.filter(e => e.getClientRects().length);
  const sizes = shown.map(e => e.getBoundingClientRect()).map(r => [r.width, r.height]);
  const bad = shown.flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    const out = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1);
    const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4
                           && b.top < a.bottom - 4;
    const over = boxes.filter(([, a], i) => boxes.some(([, b], j) => i !== j && meet(a, b)));
    return [...out, ...over].map(([text]) => text);
  });
  return [sizes, bad];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


HOSTILE = '"><script>document.title="owned"</script><img src=http://example.invalid/x onerror=alert(1)>&amp;'


def reports(case: str) -> dict[str, dict[str, Any]]:
    if case == "two":
        return {"cpu": make_report(1), "laptop": make_report(2, threads=8, speed=3.1)}
    if case == "bare":
        return {
            "cpu": make_report(1),
            "bare": without_optional_facts(make_report(2, repetitions=1, depths=(0,))),
        }
    if case == "nothing in common":
        apart = make_report(2, depths=(64,), prompt_lengths=(32,), n_gen=1, repetitions=1)
        return {"a": without_optional_facts(make_report(1)), "b": without_optional_facts(apart)}
    if case == "hostile":
        hostile = make_report(2, name=HOSTILE, cpu=HOSTILE, quantization=HOSTILE)
        hostile["runtime"].update(name=HOSTILE, package=HOSTILE, libraries={HOSTILE: HOSTILE})
        hostile["device"].update(system=HOSTILE, governor=HOSTILE, features={HOSTILE: True})
        return {"cpu": make_report(1), HOSTILE.replace("/", "\u2215"): hostile}
    eight = [
        make_report(n, speed=0.5 + n**1.5, megabytes=40 + 30 * n, bits=1 - n / 50, cpu="A long CPU name " * 4)
        for n in range(8)
    ]
    return {f"{'a-very-long-name-' * 3}{n}": report for n, report in enumerate(eight)}


CASES = ["two", "bare", "nothing in common", "hostile", "eight"]


def write_page(folder: Path, case: str) -> tuple[Path, list[str]]:
    """The page of a case, and the names of its reports."""
    comparison = compare_files(write_reports(folder, **reports(case)))
    page = folder / "compare.html"
    page.write_text(render_page(comparison), encoding="utf-8")
    return page, [report.label for report in comparison.reports]


@pytest.mark.parametrize("case", CASES)
def test_the_page_in_a_browser(browser: Browser, tmp_path: Path, case: str) -> None:
    path, names = write_page(tmp_path, case)
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())

    head = page.locator("table.figures thead").inner_text()
    assert all(name in head for name in names)
    drawn = 3 if case == "nothing in common" else 6
    for width, scheme in VIEWS:
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes, bad = page.evaluate(PICTURES)
        assert len(sizes) == drawn and all(w > 250 and h > 60 for w, h in sizes)
        assert bad == [], width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", background)[:3]))
        assert brightness < 120 if scheme == "dark" else brightness > 600
        contrast, text = page.evaluate(CONTRAST)
        assert contrast >= 4.5, text
    assert said == [] and asked == [path.as_uri()] and page.title() != "owned"
    page.close()


class Scanner(HTMLParser):
    """Collects what a page could load or run, and what its tables say."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [
            f"{k}={v}"
            for k, v in attrs
            if k.startswith("on") or (k in ("src", "href", "xlink:href") and not str(v).startswith("#"))
        ]


@pytest.mark.whole
@pytest.mark.parametrize("case", CASES)
def test_the_page_loads_and_runs_nothing(tmp_path: Path, case: str) -> None:
    path, _ = write_page(tmp_path, case)
    content = path.read_text(encoding="utf-8")
    scanner = Scanner()
    scanner.feed(content)
    assert scanner.loads == [] and not scanner.tags & {"script", "img", "link", "iframe", "object"}
    assert (
        "default-src 'none'" in content
        and "url(" not in content.replace("url(#", "")
        and "@import" not in content
    )


@pytest.mark.whole
@pytest.mark.parametrize("case", CASES)
def test_every_picture_is_well_formed_and_has_words(tmp_path: Path, case: str) -> None:
    content = write_page(tmp_path, case)[0].read_text(encoding="utf-8")
    pictures = re.findall(r'<div role="img" aria-label="([^"]+)">(<svg.*?</svg>)</div>', content, re.DOTALL)
    assert len(pictures) == content.count("<svg") == (3 if case == "nothing in common" else 6)
    for words, picture in pictures:
        assert ": " in words and "nan" not in words
        elements = list(ElementTree.fromstring(picture).iter())
        assert "nan" not in str([element.get("d") for element in elements]).lower()
    assert not re.search("#0[0-9]0b0[0-9]|#0c0c0c", content)  # every colour is the page's
    ids = re.findall(r' id="([^"]+)"', content)
    assert len(ids) == len(set(ids))


def test_every_token_time_is_drawn(tmp_path: Path) -> None:
    content = write_page(tmp_path, "two")[0].read_text(encoding="utf-8")
    picture = content[content.index("<h2>Time between tokens") :].partition("</svg>")[0]
    dots = [path for path in re.findall(r'<path d="([^"]+)"', picture) if path.count("M") > 100]
    assert [path.count("M") for path in dots] == [5 * 32, 5 * 32]  # repetitions, tokens


def test_a_name_is_text_not_a_formula(tmp_path: Path) -> None:
    comparison = compare_files(write_reports(tmp_path, **{"a$x$": make_report(1), "b$_": make_report(2)}))
    assert "a$x$" in render_page(comparison)


def test_the_command_writes_the_page_and_not_over_a_report(tmp_path: Path) -> None:
    a, b = write_reports(tmp_path, a=make_report(1), b=make_report(2))
    before, page = b.read_bytes(), tmp_path / "page.html"
    result = CliRunner().invoke(cli, ["compare", str(a), str(b), "--html", str(page)])
    assert result.exit_code == 0 and "decode, depth 0" in result.stdout, result.output
    assert f"wrote {page}" in result.stderr and "b against a" in page.read_text()
    result = CliRunner().invoke(cli, ["compare", str(a), str(b), "--html", str(b)])
    assert result.exit_code == 2 and "would replace a report" in result.stderr and b.read_bytes() == before


def test_the_same_reports_give_the_same_page(tmp_path: Path) -> None:
    first = write_page(tmp_path, "two")[0].read_bytes()
    assert write_page(tmp_path, "two")[0].read_bytes() == first
