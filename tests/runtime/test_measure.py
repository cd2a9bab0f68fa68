from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import TEXT, texts_content

import minigpt_edge_runtime
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.gguf_header import read_header
from minigpt_edge_runtime.measure import measure_quality, percentiles, run_fresh


def test_speed_in_a_process_of_its_own(model: Path) -> None:
    speed = run_fresh(
        "speed", model, threads=1, prompt_tokens=40, generate_tokens=6, first_token_prompt=8, repeat=3
    )
    samples = speed["samples"]
    assert [len(samples[name]) for name in ("load_seconds", "ttft_seconds", "prefill_seconds")] == [3, 3, 3]
    assert [len(run) for run in samples["decode_seconds"]] == [6, 6, 6]
    assert speed["decode_tokens_per_second"] == pytest.approx(
        6 / np.median([sum(run) for run in samples["decode_seconds"]]), rel=0.01
    )
    assert speed["prefill_tokens_per_second"] == pytest.approx(
        40 / np.median(samples["prefill_seconds"]), rel=0.01
    )
    assert speed["itl_ms"] == percentiles([1000 * s for run in samples["decode_seconds"] for s in run])
    assert speed["peak_rss_mb"] > speed["rss_before_load_mb"] > 5
    assert speed["model"]["sha256"] == sha256_file(model) and speed["model"]["bytes"] == model.stat().st_size
    assert speed["model"]["parameters"] == read_header(model).parameters
    assert speed["model"]["quantization"] == "F16" and speed["threads"] == 1
    assert speed["runtime"]["torch_loaded"] is False and speed["runtime"]["name"] == "llama.cpp"
    assert speed["device"]["memory_bytes"] > 1e8 and speed["device"]["cores"] >= 1
    assert set(speed["includes"]) >= {"decode_tokens_per_second", "ttft_ms", "peak_rss_mb"}


def test_peak_memory_is_not_the_parents() -> None:
    ballast = np.ones(60_000_000)  # 480 MB
    code = "from minigpt_edge_runtime.device import peak_rss_bytes; print(peak_rss_bytes())"
    environment = {**os.environ, "PYTHONPATH": str(Path(minigpt_edge_runtime.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert 5e6 < int(done.stdout) < ballast.nbytes / 4


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
    with pytest.raises(EdgeError, match="the context holds 20"):
        measure_quality(model, content, threads=1, context_length=20)
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


def test_the_new_processs_own_message_comes_back(model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(model.read_bytes()[:-5000])
    with pytest.raises(EdgeError, match="short.gguf is truncated") as caught:
        run_fresh("speed", short, threads=1)
    assert caught.value.hint == "download or export the file again"
    with pytest.raises(EdgeError, match="2,000 tokens is not possible"):
        run_fresh("speed", model, threads=1, prompt_tokens=2000)
    with pytest.raises(UsageError, match="no measurement 'size'"):
        run_fresh("size", model)
