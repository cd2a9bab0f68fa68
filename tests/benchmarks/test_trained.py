"""Every architecture after a little training, through the whole build: minutes each, in `make test-slow`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.lib.bench import opened
from minigpt_edge.cli import cli

NAMES = ("llama", "qwen2", "qwen3", "phi", "opt", "gpt2", "gpt_neox", "stablelm")


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path_factory.mktemp("trained")))
        script = importlib.import_module("benchmarks.experiments.families")
        patch.setattr(script, "TRAINED", 250_000)
        patch.setattr(script, "RECOVERED", 32_768)
        yield script


@pytest.fixture(scope="module")
def bench(families: ModuleType) -> Any:
    return opened(2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_goes_all_the_way(
    families: ModuleType, bench: Any, tmp_path: Path, name: str
) -> None:
    assert set(NAMES) == set(families.FAMILIES)
    stage = families.trained(name, bench)
    assert stage.metrics["after"]["bits_per_byte"] < 3  # random weights have more than 4
    rows = families.built(name, bench, stage.path / "model", tmp_path)
    assert [row["target"] for row in rows] == list(families.TARGETS)
    for row in rows:
        assert row["bits_per_byte"] < 3
        exact = row["target"] in ("gguf-f16", "onnx-fp32")
        assert row["parity"]["kl_mean"] < (1e-4 if exact else 0.25)
        assert row["parity"]["argmax_agreement"] > (0.98 if exact else 0.7)
        assert abs(row["parity"]["bits_ratio"] - 1) < (0.002 if exact else 0.15)
    done = CliRunner().invoke(cli, ["verify", str(tmp_path / name)])
    assert done.exit_code == 0, done.output
