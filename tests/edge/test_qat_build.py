"""Targets that store different numbers: each has a model trained for it, from the same first steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ggml_decode import quantized_tensors
from gguf import GGUFReader
from source import ROOT
from tiny_build import SMALL, write_corpus, write_model

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.layout import layout_of, load_tensor, tensors_of

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    write_corpus(folder / "corpus")
    write_model(folder / "model", folder / "corpus")
    return folder


def run(place: Path, module: str, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    environment = {"MINIGPT_EDGE_CACHE": str(place / "cache"), "PYTHONPATH": path, "COLUMNS": "200"}
    line = [sys.executable, "-m", module, *options]
    return subprocess.run(
        line, cwd=place, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def build(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = run(place, "minigpt_edge", "build", "--model", "model", "--corpus", "corpus", *SMALL, *options)
    assert done.returncode == 0, done.stderr
    return done


def unequal(file: Path, checkpoint: Path, kind: str = "IQ4_NL") -> tuple[int, int]:
    """How many of a file's block matrices of a type hold other numbers than a checkpoint, and how many there
    are."""
    decoder = read_checkpoint(checkpoint)
    layout = layout_of(decoder)
    contents, found = tensors_of(decoder, layout), []
    for tensor, held in quantized_tensors(file).values():
        if tensor.name.startswith("blk.") and tensor.type == kind:
            values = load_tensor(decoder, layout, tensor.name, contents[tensor.name])
            found.append(np.array_equal(held, values))
    return found.count(False), len(found)


def test_a_file_holds_what_training_saw_and_others_have_models_of_their_own(place: Path) -> None:
    done = build(place, "--target", "gguf-iq4_nl", "--qat", "--out", "one", "--no-baseline")
    report = json.loads((place / "one" / "report.json").read_text())
    # SMALL asks for gguf-q8 first, whose model is trained in float32
    assert [model["file"] for model in report["models"]] == ["one-q8_0.gguf", "one-iq4_nl.gguf"]
    assert [stage["name"] for stage in report["stages"]].count("recover") == 2
    assert "on IQ4_NL's grid" in done.stderr and "going on after step" in done.stderr
    assert report["recovery"]["grid"] is None
    assert len(list((place / "one").glob("reference*.json"))) == 2
    checkpoints = sorted((place / "cache" / "work").glob("recover-*/config.json"))
    found = [unequal(place / "one" / "one-iq4_nl.gguf", path.parent) for path in checkpoints]
    assert (0, found[0][1]) in found and found[0][1] > 20
    assert max(found) == (found[0][1],) * 2, "the float32 model's numbers are others"
    assert report["parity"]["gguf-iq4_nl"]["kl_mean"] < 1e-4
    assert not list((place / "cache" / "work").glob("fork-*"))
    checked = run(place, "minigpt_edge_runtime.cli", "verify", "one", "--json")
    assert checked.returncode == 0, checked.stdout
    parity = {c["name"]: c["ok"] for c in json.loads(checked.stdout)["checks"] if "parity" in c["name"]}
    assert parity == {"one-q8_0.gguf: parity": True, "one-iq4_nl.gguf: parity": True}


def test_without_it_all_files_are_made_of_one_model(place: Path) -> None:
    done = build(place, "--target", "gguf-iq4_nl", "--out", "plain", "--no-baseline")
    report = json.loads((place / "plain" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]].count("recover") == 1
    assert "grid" not in done.stderr and not (place / "plain" / "reference-2.json").exists()
    checkpoint = re.search(r"as a Hugging Face directory: (.*)", done.stderr)
    assert checkpoint
    wrong, matrices = unequal(place / "plain" / "plain-iq4_nl.gguf", Path(checkpoint[1]))
    assert wrong == matrices > 20


def test_two_bits_are_trained_unless_the_user_says_otherwise(place: Path) -> None:
    options = ("--target", "gguf-q2_0", "--out", "two", "--no-baseline")
    done = build(place, *options)
    assert "gguf-q2_0: two bits; llama.cpp has fast code for it on ARM" in done.stderr
    assert "on Q2_0's grid" in done.stderr and "loses most" not in done.stderr
    file = place / "two" / "two-q2_0.gguf"
    checkpoints = sorted((place / "cache" / "work").glob("recover-*/config.json"))
    found = [unequal(file, path.parent, "Q2_0") for path in checkpoints]
    assert (0, found[0][1]) in found and found[0][1] > 2  # few rows of this model are multiples of 64
    done = build(place, *options, "--no-qat", "--force")
    assert "on Q2_0's grid" not in done.stderr
    assert "gguf-q2_0 is quantized after training: rounding to it loses most" in done.stderr
    checkpoints = sorted((place / "cache" / "work").glob("recover-*/config.json"))
    assert all(unequal(file, path.parent, "Q2_0")[0] for path in checkpoints)


def test_what_adapters_can_not_do_is_said(place: Path) -> None:
    options = ("--lora-rank", "2", "--out", "lora", "--no-baseline")
    done = build(place, "--target", "gguf-iq4_nl", "--qat", *options)
    assert "gguf-iq4_nl is quantized after training, not trained for: adapters" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--no-recover",), "--qat does nothing with --no-recover"),
        (("--recover-until", "dense"), "--qat does nothing with --recover-until"),
        (("--target", "gguf-f16", "--target", "gguf-q8"), "it trains for gguf-q5, gguf-q4, gguf-q5_0"),
    ],
)
def test_where_it_does_nothing_it_is_refused(place: Path, options: tuple[str, ...], message: str) -> None:
    wrong = run(place, "minigpt_edge", "build", "--corpus", "corpus", "--qat", *options)
    assert wrong.returncode == 2 and message in wrong.stderr


def test_the_zeros_of_a_mask_stay(place: Path) -> None:
    """They have no level in IQ4_NL, so its grid is not trained on; adapters would fill them."""
    given = ("--model", "model", "--corpus", "corpus", "--method", "wanda", "--pattern", "2:4")
    given += ("--calibration-tokens", "4096", "--recover-tokens", "8192", "--threads", "1", "--no-baseline")
    given += ("--target", "gguf-f16", "--target", "gguf-iq4_nl", "--qat")
    done = run(place, "minigpt_edge", "build", *given, "--out", "mask")
    assert done.returncode == 0, done.stderr
    assert "gguf-iq4_nl is quantized after training, not trained for: IQ4_NL has no level" in done.stderr
    report = json.loads((place / "mask" / "report.json").read_text())
    assert report["recovery"]["tokens"] == 8192
    tensors = GGUFReader(place / "mask" / "mask-f16.gguf").tensors
    zeros = [np.mean(t.data == 0) for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    assert len(zeros) > 20 and min(zeros) >= 0.5 and max(zeros) < 0.51
    refused = run(place, "minigpt_edge", "build", *given, "--out", "lora", "--lora-rank", "2")
    assert refused.returncode == 2 and "adapters would fill the zeros" in refused.stderr
