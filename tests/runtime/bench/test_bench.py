"""bench: a latency report of a bundle, through the command line."""

from __future__ import annotations

import io
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from latency_reports import make_report as made_up_report
from rich.console import Console
from tiny_gguf import TEXT, texts_content

from minigpt_edge_runtime.bench.fresh import run_fresh
from minigpt_edge_runtime.bench.llama_bench import as_llama_bench
from minigpt_edge_runtime.bench.memory import parse_size
from minigpt_edge_runtime.bench.table import noise, print_report
from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.formats.latency_report import read_report

QUICK = (
    "--profile",
    "cpu",
    "--prompt-lengths",
    "8,24",
    "--depths",
    "0,16",
    "--generate-tokens",
    4,
    "--repeat",
    3,
)
# what scripts/compare-llama-bench.py of llama.cpp refuses a record without
COMPARE_LLAMA_BENCH_NEEDS = (
    "cpu_info gpu_info backends n_gpu_layers tensor_buft_overrides model_filename model_type n_batch "
    "n_ubatch embeddings cpu_mask cpu_strict poll n_threads type_k type_v use_mmap no_kv_offload "
    "split_mode main_gpu tensor_split flash_attn n_prompt n_gen n_depth build_commit test_time avg_ts"
)


def bench(*args: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, args)])


def with_held_out(bundle: Path) -> Path:
    """Give the bundle a held-out.json with three windows and two questions; its path."""
    path = bundle / "held-out.json"
    choices = [TEXT[40:60], " zzz", "Ça", " 42"]
    questions = [{"context": TEXT[:40], "choices": choices, "answer": answer} for answer in (0, 3)]
    path.write_text(json.dumps({"format": 1, **texts_content(), "questions": questions}))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.whole
def test_a_bundles_report(bundle: Path, tmp_path: Path) -> None:
    held_out = with_held_out(bundle)
    result = bench(bundle, *QUICK, "-o", tmp_path / "cpu.json")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "cpu.json")
    assert report["profile"] == "cpu" and report["settings"]["n_threads"] == 1
    artefact, summary = report["artefact"], report["summary"]
    assert artefact["sha256"] == sha256_file(bundle / "model.gguf")
    assert (artefact["bundle"], artefact["base_model"], artefact["domain"]) == ("tiny", "random", "law")
    rates = [statistics.median(test["samples_ts"]) for test in (report["prefill"][-1], report["decode"][0])]
    assert [summary["prefill_tokens_per_second"], summary["decode_tokens_per_second"]] == rates
    assert (summary["ttft_prompt"], summary["prefill_prompt"], summary["decode_depth"]) == (8, 24, 0)
    roofline = report["roofline"]
    for test in report["decode"]:
        reached = statistics.median(test["samples_ts"]) * roofline["weight_bytes_per_token"]
        share = reached / roofline["read_bandwidth_bytes_per_second"]
        assert test["roofline_share"] == pytest.approx(share, abs=1e-3)
    quality = report["quality"]
    assert quality["sample_sha256"] == sha256_file(held_out) and quality["split"] == "test"
    assert quality["windows"] == len(quality["per_window"]) == 3
    assert len(quality["multiple_choice"]["answers"]) == 2
    assert summary["bits_per_byte"] == quality["bits_per_byte"]
    for shown in (
        "1 thread",
        "first token after 8",
        "decode at 16",
        "of memory bandwidth",
        "multiple choice",
    ):
        assert shown in result.stdout


@pytest.mark.whole
def test_without_held_out_text_quality_is_null_and_a_note_says_so(bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, *QUICK, "--json")
    assert json.loads(result.stdout)["quality"] is None and "note: there is no held-out.json" in result.stderr
    with_held_out(bundle)
    result = bench(bundle, *QUICK, "--json", "--no-quality")
    assert json.loads(result.stdout)["quality"] is None and result.stderr == ""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(texts_content()))
    report = json.loads(bench(bundle / "model.gguf", *QUICK, "--json", "--texts", texts).stdout)
    assert report["quality"]["multiple_choice"] is None and report["quality"]["windows"] == 3
    assert report["artefact"]["bundle"] is None and report["summary"]["multiple_choice_accuracy"] is None


def test_llama_benchs_json(bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, *QUICK, "--threads", 1, "--no-quality", "--format", "llama-bench")
    tests = json.loads(result.stdout)
    assert [(t["n_prompt"], t["n_gen"], t["n_depth"]) for t in tests] == [
        (8, 0, 0),
        (24, 0, 0),
        (0, 4, 0),
        (0, 4, 16),
    ]
    for test in tests:
        assert set(COMPARE_LLAMA_BENCH_NEEDS.split()) <= set(test)
        assert None not in test.values()  # its SQL joins on equality
        assert test["avg_ns"] == pytest.approx(statistics.fmean(test["samples_ns"]), abs=1)
        assert len(test["samples_ts"]) == 3 and test["n_threads"] == 1
    report = made_up_report()
    report["artefact"]["parameters"] = report["device"]["cpu"] = report["settings"]["pinned_cpus"] = None
    assert all(None not in test.values() for test in as_llama_bench(report))


@pytest.mark.whole
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows another process's memory")
def test_the_memory_limit_holds(bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, *QUICK, "--no-quality", "--memory-limit", "30M", "-o", tmp_path / "r.json")
    assert result.exit_code == 1 and not (tmp_path / "r.json").exists()
    assert (
        "error: this needs more than 30 MB: it had" in result.stderr
        and "hint: choose a smaller" in result.stderr
    )
    result = bench(bundle, *QUICK, "--no-quality", "--memory-limit", "2GiB", "--json")
    report = json.loads(result.stdout)
    assert report["settings"]["memory_limit_bytes"] == 2 * 2**30
    assert report["settings"]["memory_limit_by"] == "watchdog"
    assert report["memory"]["peak_rss_bytes"] < 2 * 2**30


def test_every_kind_of_process_can_be_limited() -> None:
    assert run_fresh("bandwidth", threads=1, memory_limit=10**10)["samples"]
    with pytest.raises(EdgeError, match="needs more than 100 MB: it had .* while"):
        run_fresh("bandwidth", threads=1, memory_limit=100 * 10**6)


def test_sizes_as_people_write_them() -> None:
    sizes = {
        "4G": 4e9, "4GB": 4e9, "4GiB": 2**32, "40MB": 4e7, "40 mb": 4e7, "40M": 4e7, "1.5g": 1.5e9,
        "2kB": 2000, "38MiB": 38 * 2**20, "64ki": 65536, "0.5GiB": 2**29, "40_000_000": 4e7, "7": 7,
        "7B": 7, " 12 ": 12,
    }  # fmt: skip
    assert {text: parse_size(text) for text in sizes} == sizes
    wrong = ("", "M", "MB", "IB", "0", "0MB", "-1M", "1T", "1MM", "1I", "40 apples", "1e6", "4O MB", "40MB/s")
    for text in (*wrong, "٣MB", "1_", "1__0", "9" * 400):
        with pytest.raises(UsageError, match="is not a size") as caught:
            parse_size(text)
        assert "such as 40MB" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--prompt-lengths", "9999"], 1, "9,999"),
        (["--depths", "0,9999"], 1, "context"),
        (["--prompt-lengths", "8,many"], 2, "is not a list of numbers like 128,512"),
        (["--prompt-lengths", "0"], 2, "the shortest prompt is 0, it must be 1 or more"),
        (["--memory-limit", "some"], 2, "'some' is not a size"),
        (["--texts", "none.json"], 1, "none.json does not exist"),
        (["--texts", "none.json", "--no-quality"], 2, "contradict each other"),
        (["--file", "other.gguf"], 1, "has no model file 'other.gguf'"),
    ],
)
def test_what_cannot_be_done_is_said(bundle: Path, args: list[str], code: int, message: str) -> None:
    result = bench(bundle, "--profile", "cpu", *args)
    assert result.exit_code == code and message in result.stderr and result.stdout == ""
    assert "Traceback" not in result.output


def damage_held_out(bundle: Path) -> None:
    with_held_out(bundle).write_text("{}")


def damage_model(bundle: Path) -> None:
    content = bytearray((bundle / "model.gguf").read_bytes())
    content[-1] ^= 1
    (bundle / "model.gguf").write_bytes(content)


def remove_held_out(bundle: Path) -> None:
    with_held_out(bundle).unlink()


@pytest.mark.parametrize("change", [damage_held_out, remove_held_out, damage_model])
def test_a_bundle_that_changed_is_not_measured(bundle: Path, change: Any) -> None:
    change(bundle)
    result = bench(bundle, *QUICK)
    said = {damage_held_out: "held-out.json has 2 bytes", remove_held_out: "held-out.json is missing"}
    assert said.get(change, "model.gguf has been changed") in result.stderr
    assert result.exit_code == 1 and "hint: copy the bundle again" in result.stderr


def test_the_table_shows_what_there_is() -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    print_report(made_up_report(), console)
    text = console.export_text()
    for shown in ("8 cores", "performance", "on mains", "J/token", "bits per byte", "guessing 25%", "GB/s"):
        assert shown in text
    assert noise(made_up_report()) is None
    assert "other programs are busy" in str(noise(made_up_report(scatter=0.4)))
