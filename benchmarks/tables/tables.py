"""Write the README's table, docs/default-build.md and docs/result.svg from benchmarks/results/build.json, a
build's report, and docs/evidence.md with its pictures from the other results.

    python benchmarks/tables/tables.py [--check]

With --check nothing is written, and the exit status is 1 if something is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.tables import domain_tables, evidence, reliability_tables
from minigpt_edge.report.build_report import BuildReport, read_report
from minigpt_edge.report.plots import size_quality_svg, standalone
from minigpt_edge.report.tables import Table, duration, headline, markdown, megabytes, number, tables

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- results: benchmarks/tables/tables.py -->\n", "<!-- /results -->\n"
SHOWN = ("models", "speed", "pruned", "way")


COLUMNS = ("", "file size", "bits per byte", "tokens/s", "peak memory")
ROWS = 4
PAGE = """\
# The default build, measured

Written by `benchmarks/tables/tables.py` from `benchmarks/results/build.json`, the report of
`minigpt-edge build --domain law --target gguf-q4 --target onnx-int4`.

"""


def summary(report: BuildReport) -> str:
    """The README's table as Markdown: the dense model and the shipped files, ROWS of them at most."""
    dense = [model for model in report.models if model.role != "shipped"]
    shipped = [model for model in report.models if model.role == "shipped"]
    rows = [
        [
            model.label,
            megabytes(model.bytes),
            number(model.quality.bits_per_byte, 3),
            number(model.speed.decode_tokens_per_second),
            number(model.speed.peak_rss_mb, 0, "MB"),
        ]
        for model in [*dense[: ROWS - len(shipped)], *shipped]
    ]
    note = (
        "Held-out law text, two threads; fewer bits per byte are better. The dense model is as published. "
        "Every figure of this build, and the machine: "
        "[docs/default-build.md](docs/default-build.md)."
    )
    return markdown(Table("summary", "", COLUMNS, rows, note)) + "\n"


def section(report: BuildReport) -> str:
    """All figures of the default build as Markdown."""
    parts = [headline(report)]
    parts += [f"**{table.title}**\n\n{markdown(table)}" for table in tables(report) if table.key in SHOWN]
    spent = sum(stage.seconds or 0 for stage in report.stages)
    machine = report.environment
    where = ", ".join(
        f"{name.replace('_', ' ')} {machine[name]}"
        for name in ("cpu", "cores", "threads")
        if machine.get(name)
    )
    if spent:
        parts.append(f"The whole build took {duration(spent)} ({where or 'machine not recorded'}).")
    return "\n\n".join(parts) + "\n"


def outputs(root: Path) -> dict[Path, str]:
    """Every file that is generated from the results, with the text it should have.

    Raises:
        SystemExit: the results or the README's marks are missing.
    """
    source = root / "benchmarks" / "results" / "build.json"
    if not source.exists():
        raise SystemExit(f"error: {source} does not exist\nhint: copy a build's report.json there")
    report = read_report(source)
    readme = (root / "README.md").read_text(encoding="utf-8")
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"error: README.md lacks the lines {BEGIN.strip()} and {END.strip()}")
    picture = size_quality_svg(report)
    if picture is None:
        raise SystemExit(f"error: {source} has no file with both size and quality")
    return {
        root / "README.md": before + begin + summary(report) + end + after,
        root / "docs" / "default-build.md": PAGE + section(report),
        root / "docs" / "result.svg": standalone(picture),
        **evidence.outputs(source.parent, root / "docs"),
        **domain_tables.outputs(source.parent, root / "docs"),
        **reliability_tables.outputs(source.parent, root / "docs"),
    }


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the generated files; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the README's figures from benchmarks/results.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit 1 if something is out of date"
    )
    check = parser.parse_args(arguments).check
    status = 0
    for path, text in outputs(root).items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        print(("out of date: " if check else "written: ") + str(path.relative_to(root)), file=sys.stderr)
        if check:
            status = 1
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
