"""Two processes at one build, as accelerate starts them, measure and train what one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from source import ROOT
from tiny_build import SMALL, write_corpus, write_model

from minigpt_edge.prune.plan import read_plan
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_file

pytestmark = pytest.mark.whole

LAUNCH = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
LAUNCH += ("--mixed_precision", "no", "--dynamo_backend", "no", "-m")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    model = write_model(folder / "model", write_corpus(folder / "corpus"))
    # Two windows make a training step of 512 tokens, so that one process has the same steps as two.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    return folder


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def build(folder: Path, name: str, *launch: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """A build with a work directory of its own: its stages' metrics, plan and importance matrix."""
    work = folder / f"work-{name}"
    command = [*launch, "minigpt_edge", "build", "--model", "./model", "--corpus", "corpus", *SMALL]
    done = run(folder, *command, "--work", work.name, "--out", f"out-{name}", "--no-baseline", *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is ready") == 1, "one process logs"
    found: dict[str, Any] = {}
    for manifest in work.glob("*/manifest.json"):
        record = json.loads(manifest.read_text())
        found[record["stage"]] = record["metrics"]
        if record["stage"] == "prune":
            assert not list(manifest.parent.glob("process-*"))
            found["plan"] = read_plan(manifest.parent / "plan.json")
            found["importance"] = load_file(manifest.parent / "imatrix.safetensors")
    return found


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime", "tests", "tests/tiny"))
    environment = {**os.environ, "PYTHONPATH": paths, "MINIGPT_EDGE_CACHE": str(folder / "cache")}
    environment["MASTER_PORT"] = free_port()
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(inputs: Path) -> dict[str, Any]:
    return build(inputs, "alone")


def check_same(found: dict[str, Any], alone: dict[str, Any]) -> None:
    """The same choices and statistics, and a loss curve that differs by rounding."""
    pairs = [
        (set(getattr(block, part)), set(getattr(other, part)))
        for block, other in zip(found["plan"].blocks, alone["plan"].blocks, strict=True)
        for part in ("kv_groups", "neurons")
    ]
    # of two that score alike another may stay, by the processor's rounding: at most one of a hundred
    assert sum(len(b - a) for a, b in pairs) < 0.01 * sum(len(b) for _, b in pairs)
    assert found["plan"].tokens == alone["plan"].tokens
    for name, values in alone["importance"].items():
        if name.startswith("blk.0."):
            kept = [plan["plan"].blocks[0].neurons for plan in (found, alone)]
            both = [[np.isin(a, b) if "ffn_down" in name else slice(None)] for a, b in (kept, kept[::-1])]
            same, expected = found["importance"][name][tuple(both[0])], values[tuple(both[1])]
            assert same == pytest.approx(expected, rel=1e-5), name
        elif "ffn_down" not in name:  # of two equally good neurons the other one may have stayed
            assert found["importance"][name] == pytest.approx(values, rel=0.05), name
    curves = [[(e["step"], e.get("loss"), e.get("bits_per_byte")) for e in r["recover"]["history"]]
              for r in (found, alone)]  # fmt: skip
    assert len(curves[0]) == len(curves[1]) > 10
    for (step, loss, bits), (same_step, other, bits_alone) in zip(*curves, strict=True):
        assert step == same_step and (bits is None) == (bits_alone is None)
        assert loss is None or loss == pytest.approx(other, rel=1e-3)
        assert bits is None or bits == pytest.approx(bits_alone, rel=1e-3)


def test_two_processes_build_what_one_does(inputs: Path, alone: dict[str, Any]) -> None:
    check_same(build(inputs, "two", *LAUNCH), alone)


@pytest.mark.slow
def test_two_processes_with_shards_build_what_one_does(inputs: Path, alone: dict[str, Any]) -> None:
    launch = [part if part != "--multi_gpu" else "--use_fsdp" for part in LAUNCH]
    check_same(build(inputs, "shards", *launch), alone)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["domains"], "only build does"),
        (["build", "--domain", "law", "--dry-run"], "is for one process"),
    ],
)
def test_what_several_processes_may_not_do(
    command: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from minigpt_edge.cli import cli

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2 and message in done.stderr


def test_a_step_is_dealt_out_evenly_or_refused() -> None:
    from minigpt_edge.recover.config import RecoverConfig

    def settings(processes: int, micro: int = 4096) -> RecoverConfig:
        return RecoverConfig(4096, 512, 2048, micro_tokens=micro, processes=processes)

    assert [settings(n).micro_batch for n in (1, 2, 4)] == [4, 2, 1]
    assert settings(2, 512).micro_batch == 1
    with pytest.raises(EdgeError, match="3 processes can't share"):
        settings(3)


RESUME = """
import os, sys
from pathlib import Path
from minigpt_edge.stages import parallel
from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
from minigpt_edge.recover.recover import recover

def stop(entry):
    if sys.argv[2] == "stop" and entry.get("step") == 6 and "loss" in entry:
        os._exit(1)

with parallel.joined():
    config = RecoverConfig(tokens=2048, sequence_length=64, step_tokens=256, micro_tokens=64, lr=3e-3,
                           threads=1, evaluations=4, checkpoint_seconds=0.0)
    texts = TrainingTexts.of(Path("texts"))
    recover(Path("checkpoint"), Path(sys.argv[1]), texts, config, on_progress=stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["--multi_gpu", "--use_fsdp"])
def test_processes_that_were_stopped_go_on_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    from finetune_helpers import make_checkpoint, make_corpus

    make_checkpoint(tmp_path / "checkpoint", unequal=True)
    make_corpus(tmp_path / "texts")
    (tmp_path / "resume.py").write_text(RESUME)
    launch = [kind if part == "--multi_gpu" else part for part in LAUNCH if part != "-m"]
    for out, what, status in (("whole", "run", 0), ("parts", "stop", 1), ("parts", "run", 0)):
        (tmp_path / out).mkdir(exist_ok=True)
        done = run(tmp_path, *launch, "resume.py", out, what)
        assert done.returncode == status, done.stderr
        assert list((tmp_path / out).glob(".recovery/checkpoint-*")) or status == 0
    hashes = {sha256_file(tmp_path / out / "model.safetensors") for out in ("whole", "parts")}
    assert len(hashes) == 1
    found, other = (json.loads((tmp_path / out / "recovery.json").read_text()) for out in ("whole", "parts"))
    assert [e.get("loss") for e in found["history"]] == [e.get("loss") for e in other["history"]]
