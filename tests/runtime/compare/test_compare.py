from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from latency_reports import make_report, without_optional_facts, write_reports

import minigpt_edge_runtime
from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.compare.comparison import compare_files
from minigpt_edge_runtime.compare.ratio import Ratio, full_text, sampled_ratio
from minigpt_edge_runtime.compare.reports import labels
from minigpt_edge_runtime.formats.latency_report import read_report


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, args)])


def rows(*paths: Path) -> dict[str, list[dict[str, Any]]]:
    """Per row's key the entries of all reports, as --json prints them."""
    result = call(*paths, "--json")
    assert result.exit_code == 0, result.output
    return {row["key"]: row["reports"] for row in json.loads(result.stdout)["rows"]}


def verdict(entries: list[dict[str, Any]]) -> str:
    return entries[1]["ratio"]["verdict"]


def test_the_made_up_reports_are_valid(tmp_path: Path) -> None:
    for path in write_reports(tmp_path, full=make_report(), bare=without_optional_facts(make_report())):
        read_report(path)


@pytest.mark.whole
def test_what_bench_measures_can_be_compared(bundle: Path, tmp_path: Path) -> None:
    lengths = ["--prompt-lengths", "4,8", "--depths", "0", "--generate-tokens", "4", "--repeat", "2"]
    reports = [tmp_path / "a.json", tmp_path / "b.json"]
    for report in reports:
        measured = CliRunner().invoke(
            cli, ["bench", str(bundle), "--profile", "cpu", *lengths, "-o", str(report)]
        )
        assert measured.exit_code == 0, measured.output
    result = call(*reports, "--fail-if", "size>1")
    assert result.exit_code == 0, result.output
    assert "decode, depth 0" in result.stdout


def test_the_table_has_values_ratios_and_directions(tmp_path: Path) -> None:
    paths = write_reports(tmp_path, cpu=make_report(1), laptop=make_report(2, threads=8, speed=3.0))
    result = call(*paths)
    assert result.exit_code == 0, result.output
    lines = {line.split("  ")[0]: line for line in result.stdout.splitlines()}
    assert "better" in lines["decode, depth 0"] and "tok/s" in lines["decode, depth 0"]
    assert "better" in lines["first token, prompt 16"]  # less time, so below 1
    assert "same" in lines["file size"] and "≈" in lines["bits per byte"]
    for label in (
        "load",
        "prefill, prompt 512",
        "decode, depth 1,024",
        "between tokens, p99",
        "peak memory",
    ):
        assert label in lines
    assert result.stdout.index("! threads") < result.stdout.index("load ")  # warnings come first
    assert "≈ is within noise" in result.stdout and "× cpu" in result.stdout


def test_two_runs_of_the_same_thing_are_within_noise(tmp_path: Path) -> None:
    found = rows(*write_reports(tmp_path, a=make_report(1), b=make_report(4)))
    assert {verdict(entries) for entries in found.values()} <= {"noise", "same"}


def test_a_real_difference_is_seen_and_bounded(tmp_path: Path) -> None:
    slow = make_report(3, speed=0.93, megabytes=77, bits=0.97)
    found = rows(*write_reports(tmp_path, a=make_report(1), b=slow))
    decode = found["decode@0"][1]
    assert decode["ratio"]["low"] <= 0.93 <= decode["ratio"]["high"] < 1
    assert decode["value"] / found["decode@0"][0]["value"] == pytest.approx(decode["ratio"]["value"])
    for key in ("decode@0", "prefill@512", "ttft@16", "itl_p50@0", "size", "memory", "bits_per_byte"):
        assert verdict(found[key]) == "worse", key


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    chance = random.Random(0)

    def once() -> bool:
        a, b = ([chance.lognormvariate(mean, 0.1) for _ in range(5)] for mean in (0.0, 0.2))
        ratio = sampled_ratio(sorted(a)[2], sorted(b)[2], a, b, "higher", 0.0)
        return (ratio.low or 0) <= 1.2214 <= (ratio.high or 0)

    assert 0.95 <= sum(once() for _ in range(2000)) / 2000 < 0.99


def test_turning_a_ratio_over_turns_its_verdict_over() -> None:
    a, b = [1.0, 1.1, 1.2, 1.3, 9.0], [1.25, 1.5, 1.6, 4.0, 30.0]
    ratio = sampled_ratio(1.2, 1.6, a, b, "higher", 0.0)
    back = sampled_ratio(1.6, 1.2, b, a, "higher", 0.0)
    assert ratio.low == pytest.approx(1 / (back.high or 0)) and (ratio.verdict == "noise") == (
        back.verdict == "noise"
    )


@pytest.mark.parametrize("repetitions", [1, 3])
def test_few_repetitions_give_no_verdict(tmp_path: Path, repetitions: int) -> None:
    few = make_report(2, repetitions=repetitions, speed=0.5)
    paths = write_reports(tmp_path, a=make_report(1, repetitions=repetitions), b=few)
    decode = rows(*paths)["decode@0"][1]["ratio"]
    assert decode["verdict"] == "unknown" and decode["low"] is None and "too few" in decode["note"]
    assert "0.50 × ?" in call(*paths).stdout


def test_quality_is_compared_only_on_the_same_text(tmp_path: Path) -> None:
    paths = write_reports(tmp_path, a=make_report(1), b=make_report(2, sample="e"))
    found = rows(*paths)
    assert found["bits_per_byte"][1]["ratio"]["value"] is None
    assert found["accuracy"][1]["ratio"]["note"] == "asked different questions"
    assert "! held-out sample" in call(*paths).stdout
    failed = call(*paths, "--fail-if", "bits_per_byte>1.01")
    assert failed.exit_code == 1 and "scored on different text" in failed.stderr


def test_only_lengths_in_common_are_compared(tmp_path: Path) -> None:
    a = make_report(1, prompt_lengths=(16, 512), depths=(0, 512))
    b = make_report(2, prompt_lengths=(128, 512), depths=(0, 1024))
    paths = write_reports(tmp_path, a=a, b=b)
    keys = set(rows(*paths))
    assert {"prefill@512", "ttft@512", "decode@0"} <= keys
    assert not keys & {"prefill@16", "prefill@128", "decode@512", "decode@1024"}
    assert "only lengths in common have a row" in call(*paths).stdout
    none = write_reports(tmp_path, c=make_report(1, depths=(0,)), d=make_report(1, depths=(64,)))
    assert call(*none).exit_code == 0
    assert "can't be compared" in call(*none, "--fail-if", "decode<0.9").stderr


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "model file": lambda r: r["artefact"].update(sha256="f" * 64),
    "quantization": lambda r: r["artefact"].update(quantization="Q4_K"),
    "device": lambda r: r["device"].update(cpu="another"),
    "CPU features": lambda r: r["device"]["features"].update(avx512f=False),
    "power source": lambda r: r["device"].update(power_source="battery"),
    "governor": lambda r: r["device"].update(governor="powersave"),
    "runtime": lambda r: r["runtime"].update(name="onnxruntime"),
    "runtime version": lambda r: r["runtime"].update(package="llama-cpp-python 0.4.0"),
    "libraries": lambda r: r["runtime"]["libraries"].update(numpy="1.26.0"),
    "minigpt-edge-runtime": lambda r: r["runtime"].update(minigpt_edge_runtime="9.0"),
    "profile": lambda r: r.update(profile="custom"),
    "threads": lambda r: r["settings"].update(n_threads=2),
    "pinning": lambda r: r["settings"].update(pinned_cpus=[3]),
    "repetitions": lambda r: r["settings"].update(repetitions=4),
    "tokens generated": lambda r: r["settings"].update(n_gen=16),
    "context length": lambda r: r["settings"].update(context_length=512),
    "memory limit": lambda r: r["settings"].update(memory_limit_bytes=512_000_000),
    "energy source": lambda r: r["energy"].update(source="battery"),
    "noise": lambda r: r["decode"][0].update(stddev_ts=r["decode"][0]["avg_ts"] / 2),
}


@pytest.mark.parametrize("about", CHANGES)
def test_what_differs_is_said(tmp_path: Path, about: str) -> None:
    other = make_report(2)
    CHANGES[about](other)
    caveats = compare_files(write_reports(tmp_path, a=make_report(1), b=other)).caveats
    assert [caveat.about for caveat in caveats] == [about]
    assert caveats[0].meaning and "b: " in caveats[0].values


def test_nothing_is_said_of_equal_or_unknown_facts(tmp_path: Path) -> None:
    other = make_report(2)
    other["device"].update(governor=None, power_source=None, cpu=None)
    assert compare_files(write_reports(tmp_path, a=make_report(1), b=other)).caveats == []


def test_the_same_file_twice_is_fine_and_said(tmp_path: Path) -> None:
    (path,) = write_reports(tmp_path, cpu=make_report())
    result = call(path, path)
    assert result.exit_code == 0 and "! same report: cpu = cpu (2)" in result.stdout


def test_many_reports_become_rows_and_lose_nothing(tmp_path: Path) -> None:
    paths = write_reports(tmp_path, **{f"device{n}": make_report(n, speed=1 + n / 4) for n in range(8)})
    result = call(*paths)
    assert result.exit_code == 0, result.output
    labels_of_rows = [row["label"] for row in json.loads(call(*paths, "--json").stdout)["rows"]]
    assert all(label in result.stdout for label in labels_of_rows)
    assert max(map(len, result.stdout.splitlines())) <= 120
    tables = result.stdout.count("device7  ")
    assert tables > 1 and result.stdout.count("reference") == len(labels_of_rows)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["cpu.json", "x/laptop.json"], ["cpu", "laptop"]),
        (["a/cpu.json", "b/cpu.json", "c.json"], ["a/cpu", "b/cpu", "c"]),
        (["cpu.json", "cpu.json", "cpu (2).json"], ["cpu", "cpu (2)", "cpu (2) (2)"]),
        (["v1.2.json", "v1.3"], ["v1.2", "v1.3"]),
        (["x" * 60 + ".json", "\x1b[31m\u202e.json"], ["x" * 11 + "…" + "x" * 11, "�[31m�"]),
    ],
)
def test_labels_are_short_and_different(paths: list[str], expected: list[str]) -> None:
    assert labels([Path(path) for path in paths]) == expected


@pytest.mark.parametrize(
    ("expressions", "code", "message"),
    [
        (["decode<0.95"], 1, "b: decode is 0.9"),
        ([" decode < .5 ", "prefill<0.5", "size>1.2"], 0, ""),
        (["itl>1.01"], 1, "a's, which itl>1.01 forbids"),
        (["load>2", "memory>1.02"], 1, "b: memory is 1.04 × a's"),
        (["ttft>1.01", "decode<0.95"], 1, "decode is"),
        (["accuracy<0.1"], 0, ""),
        (["speed<1"], 2, "there is no metric 'speed'"),
        (["decode<=1"], 2, "can't be read"),
        (["decode<nan"], 2, "can't be read"),
        (["decode<٣"], 2, "can't be read"),
        ([""], 2, "can't be read"),
    ],
)
def test_fail_if(tmp_path: Path, expressions: list[str], code: int, message: str) -> None:
    paths = write_reports(tmp_path, a=make_report(1), b=make_report(2, speed=0.93, megabytes=77))
    result = call(*paths, *(part for text in expressions for part in ("--fail-if", text)))
    assert result.exit_code == code, result.output
    assert message in result.stderr and ("error: " in result.stderr) == (code > 0)
    assert ("decode, depth 0" in result.stdout) == (code < 2)  # the table is there to see why


@pytest.mark.parametrize("metric", ["memory", "bits_per_byte", "accuracy"])
def test_a_missing_figure_never_passes(tmp_path: Path, metric: str) -> None:
    paths = write_reports(tmp_path, a=make_report(1), bare=without_optional_facts(make_report(2)))
    for limit in (f"{metric}>100", f"{metric}<0.001"):
        result = call(*paths, "--fail-if", limit)
        assert result.exit_code == 1
        assert f"bare: {metric} can't be compared with a's (not measured)" in result.stderr


def damaged(**changes: Any) -> str:
    return json.dumps({**make_report(), **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("[1, 2]", "is not a latency report"),
        ('{"schema": "other"}', "is not a latency report"),
        (damaged(schema_version=2), "schema version 2"),
        (damaged(memory=None), "is damaged"),
        (damaged(decode=[]), "is damaged"),
        (damaged(extra=float("nan")), "$.extra is nan, which nothing here can measure"),
        (damaged(extra=10**400), "a giant number"),
        ('{"schema": "minigpt-edge/latency-report", "x": ' + "[" * 100_000, ""),
    ],
)
def test_what_is_no_report_is_one_message(tmp_path: Path, content: str | None, message: str) -> None:
    (good,) = write_reports(tmp_path, good=make_report())
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    result = call(good, bad)
    assert result.exit_code == 1 and "Traceback" not in result.output and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and "bad.json" in result.stderr
    assert "\nhint: " in result.stderr and result.stderr.count("\n") == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path != bad) == ["good.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(memory=None), "$.memory is None, not an object"),
        (lambda report: report.update(decode=[]), "$.decode is not a list of one object or more"),
        (lambda report: report.pop("quality"), "$.quality is neither an object nor null"),
        (lambda report: report["decode"][1]["samples_ts"].__setitem__(2, "fast"), "is damaged"),
        (lambda report: report["settings"].pop("n_gen"), "is damaged (KeyError: 'n_gen')"),
        (lambda report: report["load"].update(samples_ns=7), "is damaged (TypeError"),
    ],
)
def test_without_the_validator_a_damaged_report_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], message: str
) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    bad = make_report(2)
    change(bad)
    good, path = write_reports(tmp_path, good=make_report(1), bad=bad)
    assert call(good, good).exit_code == 0
    result = call(good, path)
    assert result.exit_code == 1 and message in result.stderr and "bad.json" in result.stderr
    assert "hint: measure again" in result.stderr and "Traceback" not in result.output


def test_fewer_than_two_reports_are_a_usage_error(tmp_path: Path) -> None:
    (a,) = write_reports(tmp_path, a=make_report(1))
    for args in ([], [a]):
        result = call(*args)
        assert result.exit_code == 2 and "two or more reports" in result.stderr


def test_the_device_says_how_to_get_the_page(tmp_path: Path) -> None:
    a, b = write_reports(tmp_path, a=make_report(1), b=make_report(2))
    result = call(a, b, "--html", tmp_path / "page.html")
    assert result.exit_code == 2 and result.stdout == "" and not (tmp_path / "page.html").exists()
    assert result.stderr.startswith("error: the page with plots can't be drawn on a device\nhint: copy the")
    assert f"minigpt-edge compare {a} {b} --html" in result.stderr


def test_reports_can_not_steer_the_terminal(tmp_path: Path) -> None:
    other = make_report(2, cpu="\x1b[2J\u202eevil [red]x[/red]")
    result = call(*write_reports(tmp_path, a=make_report(1), b=other))
    assert (
        "\x1b" not in result.stdout and "\u202e" not in result.stdout and "evil [red]x[/red]" in result.stdout
    )


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(0.931, 0.913, 0.952), "0.93 × (0.91–0.95)"),
        (Ratio(1.0012, 0.9994, 1.003), "1.001 × (0.999–1.003)"),
        (Ratio(48.47, 3.2, 515.2), "48.5 × (3.2–515.2)"),
        (Ratio(1.0004), "1.0004 ×"),
        (Ratio(1.0, 1.0, 1.0, "same"), "1.00 ×"),
        (Ratio(None), "–"),
    ],
)
def test_ratios_read_with_the_digits_they_deserve(ratio: Ratio, text: str) -> None:
    assert full_text(ratio) == text


def test_help_needs_nothing_heavy() -> None:
    code = "import sys\nfor n in ('numpy', 'rich', 'llama_cpp'): sys.modules[n] = None\n"
    code += "from minigpt_edge_runtime.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(Path(minigpt_edge_runtime.__file__).parents[1])}
    command = [sys.executable, "-P", "-c", code, "compare", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "bits_per_byte" in done.stdout, done.stderr
