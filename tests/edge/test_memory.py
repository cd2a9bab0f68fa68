"""Memory is estimated before work begins, and a limit is met by streaming and smaller passes, or refused."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from source import ROOT
from tiny_build import SMALL, write_corpus, write_model

from minigpt_edge.prune.memory import of_pruning, stays_on_disk
from minigpt_edge.recover.memory import Recovery, of_recovery
from minigpt_edge.stages import memory
from minigpt_edge_runtime.errors import EdgeError

pytestmark = pytest.mark.whole

SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152, "num_hidden_layers": 30,
    "tie_word_embeddings": True,
}  # fmt: skip


def test_estimates_are_near_what_was_measured() -> None:
    """Peaks of stages of SmolLM2-135M in GiB (economics, 131,072 tokens): never less, never twice as much."""
    pruning = of_pruning(SMOLLM2, 134_515_008, 131_072, lazy=False) / 2**30
    kept = {**SMOLLM2, "intermediate_size": 1504, "vocab_size": 21_984}
    recovery = of_recovery(kept, 78_000_000, 512, lora=False) / 2**30
    for estimate, measured in ((pruning, 2.74), (recovery, 2.81)):
        assert measured < estimate < 2 * measured


def test_staying_on_disk_and_smaller_passes_take_less() -> None:
    large = {**SMOLLM2, "tie_word_embeddings": False, "hidden_size": 2048, "intermediate_size": 8192}
    whole, lazy = (of_pruning(large, 1_400_000_000, 16_384, lazy=lazy) for lazy in (False, True))
    assert lazy < whole / 1.5
    most, least = (of_recovery(SMOLLM2, 10**8, micro, lora=False) for micro in (2048, 512))
    assert least < most
    # adapters spare gradients and moments but keep more activations: they pay for large models
    tuned, adapted = (of_recovery(large, 10**9, 512, lora=lora) for lora in (False, True))
    assert adapted < tuned / 1.5


@pytest.mark.parametrize("limit", [None, 10**6])
def test_what_does_not_fit_is_refused_with_the_figure(limit: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    with pytest.raises(EdgeError, match=r"pruning needs about 3\.7 GiB of memory, 0\.0 GiB") as caught:
        memory.check(int(3.7 * 2**30), limit, "pruning", "use less")
    assert ("--max-memory allows" in caught.value.message) == (limit is not None)


@pytest.mark.parametrize("limit", [None, 10**6])
def test_every_hint_names_what_helps_there(tmp_path: Path, limit: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    model = write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"))
    with pytest.raises(EdgeError) as pruning:
        stays_on_disk(model, 4096, limit, may=True)
    with pytest.raises(EdgeError) as recovery:
        Recovery(model, lora=False, limit=limit).check(512)
    hints = [str(caught.value.hint) for caught in (pruning, recovery)]
    assert "--calibration-tokens" in hints[0] and "--calibration-tokens" not in hints[1]
    assert "--lora-rank" in hints[1]
    assert ("give --max-memory" in hints[0], "give --max-memory" in hints[1]) == (limit is None,) * 2


def test_the_limit_decides_the_size_of_a_pass(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"))
    room = Recovery(model, lora=False, limit=None)
    assert room.micro_tokens(2048, 512) == 2048
    limit = room.needed(1024)
    assert Recovery(model, lora=False, limit=limit).micro_tokens(2048, 512) == 1024
    assert Recovery(model, lora=False, limit=1).micro_tokens(2048, 512) == 512


def build(place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    environment = {**os.environ, "MINIGPT_EDGE_CACHE": str(place / "cache"), "PYTHONPATH": path}
    given = ["--model", "./model", "--corpus", "corpus", "--no-baseline", *SMALL, *options]
    return subprocess.run(
        [sys.executable, "-m", "minigpt_edge", "build", *given],
        cwd=place, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_limit_leaves_the_result_or_is_refused(tmp_path: Path) -> None:
    """Pruned from disk the plan and the weights are the same; recovery takes smaller passes."""
    from minigpt_edge.models.checkpoint import read_config, stored_parameters

    model = write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"))
    low = of_pruning(read_config(model), stored_parameters(model), 4096, lazy=True)
    done = build(tmp_path, "--out", "free", "--no-recover")
    assert done.returncode == 0, done.stderr
    work = tmp_path / "cache" / "work"
    (free,) = work.glob("prune-*")
    kept = {path.name: path.read_bytes() for path in (free / "checkpoint").iterdir()}
    free.rename(tmp_path / "free-prune")
    limited = build(tmp_path, "--out", "limited", "--no-recover", "--max-memory", str(low))
    assert limited.returncode == 0, limited.stderr
    (again,) = work.glob("prune-*")
    from minigpt_edge_export.weights import Weights, weight_files

    before, after = (Weights(weight_files(p / "checkpoint")) for p in (tmp_path / "free-prune", again))
    assert before.shapes == after.shapes
    assert all((before.load(name) == after.load(name)).all() for name in before.shapes)
    assert len(weight_files(again / "checkpoint")) > 1, "blocks that stay on disk are written as shards"
    assert "model.safetensors" in kept
    refused = build(tmp_path, "--out", "refused", "--max-memory", "10MB", "--seed", "1")
    assert refused.returncode == 1 and "pruning needs about" in refused.stderr
    assert "--max-memory allows" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_while_asked_and_given_back_afterwards() -> None:
    """Page faults of taking the same 64 MiB again and again, in a process of its own."""
    code = """
import ctypes, resource
from minigpt_edge.stages.memory import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        block = bytearray(64 << 20)
        block[::4096] = b"1" * len(block[::4096])
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with keep_freed():
    faults()
    kept = faults()
print(usual, kept, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    usual, kept, after = map(int, done.stdout.split())
    assert kept < usual / 10 and after > usual / 2
