"""Sweeps: what a file may say, and whole builds that share their stages and resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT
from tiny_build import write_corpus, write_model

pytestmark = pytest.mark.whole

SWEEP = """
out = "swept"
jobs = 2
[options]
model = "./model"
corpus = "corpus"
calibration-tokens = 4096
recover-tokens = 16384
min-count = 1
no-baseline = true
[vary]
sparsity = [0.1]
target = ["gguf-q8", ["gguf-f16", "onnx-int8"]]
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime"))
    environment = {**os.environ, "MINIGPT_EDGE_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    environment["COLUMNS"] = "160"
    return subprocess.run(
        [sys.executable, "-m", "minigpt_edge", "sweep", "sweep.toml", *options],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_builds_share_stages_resume_and_fail_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"))
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("[0.1]", "[0.1, 0.97]"))
    done = run(tmp_path, "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)["builds"]}
    assert list(rows) == [f"{s}_{t}" for s in (0.1, 0.97) for t in ("gguf-q8", "gguf-f16+onnx-int8")]
    assert done.returncode == 1 and "2 of 4 builds failed" in done.stderr
    for name, row in rows.items():
        if name.startswith("0.97"):
            assert "can be removed" in row["failed"] and (tmp_path / "swept" / f"{name}.log").exists()
            continue
        assert abs(row["sparsity"] - float(name[:3])) < 0.01
        for made in row["files"]:
            assert (tmp_path / "swept" / name / made["file"]).stat().st_size > 0
            assert made["bits_per_byte"] > 0 and made["tokens_per_second"] > 0
    work = tmp_path / "cache" / "work"
    made = {kind: len(list(work.glob(f"{kind}-*"))) for kind in ("corpus", "prune", "recover")}
    assert made["corpus"] == 1 and made["recover"] == 1
    assert made["prune"] == 1 + len(list(work.glob("prune-*.partial")))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "0.1_gguf-q8" in again.stdout and "tokens/s" in again.stdout
    log = (tmp_path / "swept" / "0.1_gguf-q8.log").read_text()
    assert "nothing to do" in log


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("[vary]", "[vary"), "is not TOML"),
        (('out = "swept"', 'output = "x"'), "there is no key output"),
        (("min-count", "min-counts"), "can't set 'min-counts'"),
        (("sparsity = [0.1]", "sparsity = 0.1"), "vary.sparsity is 0.1, it should be a valid list"),
        (("sparsity = [0.1]", "sparsity = []"), "vary.sparsity is []"),
        (("no-baseline = true", "no-baseline = 1"), "no-baseline is true or false"),
        (("min-count = 1", "min-count = [[1]]"), "min-count can't be [1]"),
        (("jobs = 2", "jobs = 0"), "jobs is 0, it should be greater than or equal to 1"),
        (("jobs = 2", "threads = 0"), "threads is 0, it should be greater than or equal to 1"),
        (("jobs = 2", 'jobs = "many"'), "jobs is 'many', it should be a valid integer"),
        (("sparsity = [0.1]", 'corpus = ["a/x", "b/x"]'), "corpus is under both"),
        (("sparsity = [0.1]", 'plan = ["a/x", "b/x"]'), "two builds would be called x_gguf-q8"),
        (("min-count = 1", 'out = "x"'), "can't set 'out'"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, changed: tuple[str, str], message: str) -> None:
    from click.testing import CliRunner

    from minigpt_edge.cli import cli

    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.replace(*changed))
    result = CliRunner().invoke(cli, ["sweep", str(path)])
    assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output


def test_false_is_the_other_form_of_a_flag_that_has_one() -> None:
    from minigpt_edge.stages.sweep import _arguments

    options = {"refit": True, "no-refit": True, "no-baseline": True, "seed": False}
    assert list(_arguments("refit", False, options)) == ["--no-refit"]
    assert list(_arguments("refit", True, options)) == ["--refit"]
    assert list(_arguments("no-baseline", False, options)) == []
    assert list(_arguments("seed", [0, 1], options)) == ["--seed=0", "--seed=1"]
