"""Stages on a real accelerator beside the CPU; all of them are skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_build import write_corpus, write_model

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.accelerator.current_accelerator(check_available=True) is None, reason="no accelerator here"
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    write_model(folder / "model", write_corpus(folder / "corpus"))
    return folder


def stages(place: Path, device: str, name: str) -> tuple[Any, Any, Any]:
    """The context, and what pruning and recovery leave."""
    from minigpt_edge.data.stage import corpus_stage
    from minigpt_edge.evaluation.stage import dense_stage
    from minigpt_edge.models import base_model
    from minigpt_edge.prune.stage import prune_stage
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.recover.stage import recover_stage
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.context import BuildContext
    from minigpt_edge.stages.device import resolve

    recipe = Recipe(
        corpus=(str(place / "corpus"),),
        model=str(place / "model"),
        calibration_tokens=4096,
        recover_tokens=16_384,
        min_count=1,
        sparsity=0.3,
        device=resolve(device),
    )
    with Log(quiet=True) as log:
        context = BuildContext(place / name, recipe, base_model.resolve_model(recipe.model), log)
        text = corpus_stage(context)
        dense, pruned = dense_stage(context, text), prune_stage(context, text)
        return context, pruned, recover_stage(context, text, dense, pruned)


def test_the_accelerator_computes_what_the_cpu_does(place: Path) -> None:
    _, pruned, recovered = stages(place, "cpu", "cpu")
    context, theirs, later = stages(place, "auto", "auto")
    assert context.recipe.device != "cpu"
    bits = theirs.metrics["quality"]["bits_per_byte"]
    assert bits == pytest.approx(pruned.metrics["quality"]["bits_per_byte"], rel=2e-3)
    after = recovered.metrics["after"]["bits_per_byte"]
    assert later.metrics["after"]["bits_per_byte"] == pytest.approx(after, rel=1e-2)


def test_the_same_accelerator_gives_the_same_bits_again(place: Path) -> None:
    from minigpt_edge_runtime.files import sha256_file

    made = [stages(place, "auto", name)[1:] for name in ("once", "again")]
    for name, stage in (("checkpoint/model.safetensors", 0), ("model.safetensors", 1)):
        assert len({sha256_file(one[stage].path / name) for one in made}) == 1


def test_blocks_on_disk_give_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.models import checkpoint

    whole = stages(place, "auto", "whole")[1]
    monkeypatch.setattr(checkpoint, "is_large", lambda directory: True)
    lazy = stages(place, "auto", "lazy")[1]
    bits = lazy.metrics["quality"]["bits_per_byte"]
    assert bits == pytest.approx(whole.metrics["quality"]["bits_per_byte"], rel=2e-3)


def test_recovery_reports_a_rate_of_the_device(place: Path) -> None:
    _, _, recovered = stages(place, "auto", "auto")
    assert recovered.metrics["matmul_flops"] > 1e10
    assert 0 < recovered.metrics["matmul_fraction"] < 1
