from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import TEXT, make_gguf, texts_content
from tokenizers import Tokenizer

import minigpt_edge_runtime
from minigpt_edge_runtime.bench.fresh import run_fresh
from minigpt_edge_runtime.bench.measure import measure_quality
from minigpt_edge_runtime.bench.profiles import Settings
from minigpt_edge_runtime.bench.samples import entry, milliseconds
from minigpt_edge_runtime.engines.spin import spin_briefly
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.formats.gguf_header import read_header


def test_speed_in_a_process_of_its_own(model: Path) -> None:
    speed = run_fresh("speed", model, threads=1)
    assert 0 < speed["load_seconds"] < 10 and speed["peak_rss_mb"] > 20
    assert speed["prefill_tokens_per_second"] > speed["decode_tokens_per_second"] > 1
    for times in (speed["ttft_ms"], speed["itl_ms"]):
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    assert speed["settings"]["prompt_lengths"] == [128, 512] and speed["settings"]["depths"] == [0]
    assert speed["model"]["sha256"] == sha256_file(model) and speed["model"]["bytes"] == model.stat().st_size
    assert speed["model"]["parameters"] == read_header(model).parameters
    assert speed["model"]["quantization"] == "F16" and speed["threads"] == 1
    assert speed["runtime"]["torch_loaded"] is False and speed["runtime"]["name"] == "llama.cpp"


def test_speed_of_a_model_of_short_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    speed = run_fresh("speed", make_gguf(tmp_path / "short.gguf", tokenizer, context=96), threads=1)
    assert speed["settings"]["prompt_lengths"] == [96] and speed["decode_tokens_per_second"] > 1


def test_latency_keeps_every_sample(model: Path) -> None:
    settings = Settings(1, prompt_lengths=(8, 40), depths=(0, 16), generate_tokens=6, repetitions=3)
    measured = run_fresh("latency", model, settings=asdict(settings))
    assert len(measured["load"]["samples_ns"]) == 3 and measured["load"]["first_ns"] > 0
    assert [test["n_prompt"] for test in measured["prefill"]] == [8, 40]
    assert [(test["n_depth"], test["n_gen"]) for test in measured["decode"]] == [(0, 6), (16, 6)]
    for test in measured["decode"]:
        assert [len(run) for run in test["itl_ns"]] == [6, 6, 6]
        assert [sum(run) for run in test["itl_ns"]] == test["samples_ns"]
        assert test["itl_ms"] == milliseconds([ns for run in test["itl_ns"] for ns in run])
    for test in measured["prefill"]:
        assert test["ttft_ms"] == milliseconds(test["samples_ns"])
        assert test["avg_ts"] == pytest.approx(
            test["n_prompt"] * 1e9 * np.mean(1 / np.array(test["samples_ns"]))
        )
    memory = measured["memory"]
    assert 5e6 < memory["rss_before_load_bytes"] < memory["rss_after_load_bytes"] <= memory["peak_rss_bytes"]
    assert measured["settings"]["context_length"] == 40
    assert measured["settings"]["pinned_cpus"] is None or len(measured["settings"]["pinned_cpus"]) == 1
    assert set(measured["runtime"]["libraries"]) >= {"numpy", "llama-cpp-python"}


def test_statistics_are_llama_benchs_and_numpys() -> None:
    samples = [30_000_000, 10_000_000, 20_000_000]
    test = entry(10, 0, 0, samples)
    assert (test["avg_ns"], test["stddev_ns"]) == (20_000_000, 10_000_000)
    assert test["samples_ts"] == [pytest.approx(333.3333), 1000.0, 500.0]
    assert test["stddev_ts"] == pytest.approx(np.std([1000 / 3, 1000, 500], ddof=1))
    expected = [20.0, *np.percentile([10, 20, 30], [50, 90, 99])]
    assert list(milliseconds(samples).values()) == pytest.approx(expected)
    assert milliseconds([5_000_000]) == {"mean": 5.0, "p50": 5.0, "p90": 5.0, "p99": 5.0}
    assert entry(0, 1, 0, [7])["stddev_ns"] == 0


def test_peak_memory_is_not_the_parents() -> None:
    ballast = np.ones(60_000_000)  # 480 MB
    code = "from minigpt_edge_runtime.bench.memory import peak_rss_bytes; print(peak_rss_bytes())"
    environment = {**os.environ, "PYTHONPATH": str(Path(minigpt_edge_runtime.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert 5e6 < int(done.stdout) < ballast.nbytes / 4


@pytest.mark.whole
def test_quality_equals_a_plain_computation(model: Path, tmp_path: Path) -> None:
    import llama_cpp

    content = texts_content()
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(content))
    quality = run_fresh("quality", model, texts=texts, threads=1)

    direct = llama_cpp.Llama(str(model), n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    for window, measured in zip(content["windows"], quality["per_window"], strict=True):
        ids = direct.tokenize(window["text"].encode(), add_bos=False, special=False)
        direct.reset()
        direct.eval([0, *ids])
        logits = np.array(direct.scores[: len(ids)], dtype=np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert measured["nll"] == pytest.approx(-log_probabilities[np.arange(len(ids)), ids].sum(), rel=1e-3)
        assert (measured["tokens"], measured["bytes"]) == (len(ids), window["bytes"])
    direct.close()

    nll = sum(window["nll"] for window in quality["per_window"])
    size = sum(window["bytes"] for window in content["windows"])
    assert quality["bits_per_byte"] == pytest.approx(nll / math.log(2) / size)
    assert quality["perplexity_per_base_token"] == pytest.approx(math.exp(nll / 60))
    assert quality["windows"] == 3 and quality["base_tokens"] == 60 and quality["split"] == "test"
    assert 0 < quality["stderr"] < quality["bits_per_byte"]
    assert quality["runtime"]["torch_loaded"] is False


def test_equal_windows_have_no_error_and_one_window_has_none(model: Path) -> None:
    content = texts_content()
    content["windows"] = content["windows"][:1] * 4
    assert measure_quality(model, content, threads=1)["stderr"] == pytest.approx(0, abs=1e-6)
    content["windows"] = content["windows"][:1]
    assert measure_quality(model, content, threads=1)["stderr"] is None


def test_windows_that_cannot_be_scored_are_refused(model: Path, tmp_path: Path) -> None:
    content = texts_content()
    long = {"text": TEXT * 40, "bytes": len((TEXT * 40).encode()), "base_tokens": 99}
    with pytest.raises(EdgeError, match="not possible"):
        measure_quality(model, {**content, "windows": [long]}, threads=1)
    wrong = {**content["windows"][0], "bytes": 7}
    with pytest.raises(EdgeError, match="window 1 of the texts file is damaged"):
        measure_quality(model, {**content, "windows": [content["windows"][1], wrong]}, threads=1)
    with pytest.raises(EdgeError, match="no windows"):
        measure_quality(model, {**content, "windows": []}, threads=1)
    with pytest.raises(EdgeError, match="not a texts file"):
        measure_quality(model, {"windows": [{"text": "a"}]}, threads=1)
    with pytest.raises(EdgeError, match="is not a token of this model"):
        measure_quality(model, {**content, "document_start": "<none>"}, threads=1)
    (tmp_path / "texts.json").write_text("{")
    with pytest.raises(EdgeError, match="not valid JSON"):
        measure_quality(model, tmp_path / "texts.json", threads=1)


def test_a_new_process_that_crashes_is_told_from_one_that_fails(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EdgeError, match="measuring the speed of .*tiny.gguf failed: TypeError: .*'dance'"):
        run_fresh("speed", model, dance=1)
    (tmp_path / "sitecustomize.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EdgeError, match="was ended by signal 11") as caught:
        run_fresh("speed", model)
    assert "built for another CPU" in str(caught.value.hint)


def test_the_new_processs_own_message_comes_back(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(EdgeError, match="short.gguf is truncated") as caught:
        run_fresh("speed", short, threads=1)
    assert caught.value.hint == "download or export the file again"
    settings = asdict(Settings(1, prompt_lengths=(2000,)))
    with pytest.raises(EdgeError, match="2,000 tokens is not possible"):
        run_fresh("latency", model, settings=settings)
    with pytest.raises(UsageError, match="no measurement 'size'"):
        run_fresh("size", model)


@pytest.mark.parametrize(("kind", "spins"), [("speed", None), ("latency", None), ("quality", "1000")])
def test_only_what_is_timed_spins_as_other_programs_do(
    kind: str, spins: str | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def start(command: list[str], env: dict[str, str], **_: object) -> None:
        seen.update(env)
        raise EdgeError("not started")

    monkeypatch.setattr(subprocess, "Popen", start)
    for user in ({}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}):
        environment = dict(user)
        spin_briefly(environment)
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "MINIGPT_EDGE_SPINS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        seen.clear()
        with pytest.raises(EdgeError, match="not started"):
            run_fresh(kind, model)
        assert seen.get("GOMP_SPINCOUNT") == (user.get("GOMP_SPINCOUNT") if user else spins)
        assert seen.get("OMP_WAIT_POLICY") == user.get("OMP_WAIT_POLICY")
