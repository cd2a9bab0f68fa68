"""Every architecture: what is read, computed, cut and written is what transformers has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from pruning import prune_units
from tiny_families import FAMILIES, narrow, write_family
from tiny_llama import Checkpoint
from transformers import AutoModelForCausalLM  # noqa: TID253

from minigpt_edge.evaluation.perplexity import sum_nll
from minigpt_edge.evaluation.probe import Probe
from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.attention import use_in
from minigpt_edge.models.checkpoint import count_parameters, load_model, save_model
from minigpt_edge.prune.decide import Decision
from minigpt_edge.recover.flops import training_flops
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_runtime.errors import EdgeError

ROWS = torch.from_numpy(np.random.default_rng(1).integers(0, 399, (4, 40)))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    made: dict[str, Checkpoint] = {}

    def family(name: str) -> Checkpoint:
        if name not in made:
            made[name] = write_family(tmp_path_factory.mktemp("family"), name, {})
        return made[name]

    return family


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ROWS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.whole
@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_the_stock_one_and_is_written_back(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    checkpoint = family(name)
    model = load_model(checkpoint.path)
    torch.testing.assert_close(logits(model), logits(checkpoint.model), rtol=1e-4, atol=1e-3)
    save_model(model, checkpoint.path, tmp_path / "saved")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(logits(stock.eval()), logits(checkpoint.model))


@pytest.mark.parametrize("name", FAMILIES)
def test_training_counts_every_matrix_once(family: Callable[[str], Checkpoint], name: str) -> None:
    checkpoint = family(name)
    stock, config = checkpoint.model, checkpoint.model.config
    tables = {id(m.weight) for m in stock.modules() if isinstance(m, torch.nn.Embedding)}
    tables.discard(id(stock.get_output_embeddings().weight))  # tied, it is multiplied with
    matrices = sum(w.numel() for w in stock.parameters() if w.dim() == 2 and id(w) not in tables)
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    expected = 6 * matrices + 6 * 32 * width * config.num_hidden_layers
    assert training_flops(load_model(checkpoint.path), 32) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_halves_of_blocks_compute_what_the_model_does(
    family: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The calibration's way through the blocks, in float32, gives the loss that the whole model has."""
    monkeypatch.setattr("minigpt_edge.evaluation.probe.compute_dtype", lambda: torch.float32)
    monkeypatch.setattr("minigpt_edge.models.precision.compute_dtype", lambda: torch.float32)
    model: Any = load_model(family(name).path)
    arch = load_arch(model.config)
    probe = Probe(model, arch, ROWS.tolist(), [1] * len(ROWS))
    use_in(model)
    whole = sum_nll(model, ROWS.tolist())
    assert float(probe.measure(model).nll.sum()) == pytest.approx(whole, rel=1e-5)
    stock = torch.nn.functional.cross_entropy(
        logits(family(name).model)[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten(), reduction="sum"
    )
    assert whole == pytest.approx(float(stock), rel=1e-5)


@pytest.mark.whole
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_cut_equals_what_is_zero(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    grouped = name.startswith("qwen")
    masked = narrow(family(name), tmp_path / "narrow", heads=grouped)
    model: Any = load_model(family(name).path)
    arch = load_arch(model.config)
    block = arch.blocks(model)[1]
    arch.cut(block, groups=torch.arange(1) if grouped else None, kept_neurons=torch.arange(64))
    torch.testing.assert_close(logits(model), logits(masked.model), rtol=1e-4, atol=1e-3)
    save_model(model, family(name).path, tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(tmp_path / "saved")), logits(model))
    assert read_checkpoint(tmp_path / "saved").blocks == read_checkpoint(masked.path).blocks


@pytest.mark.parametrize("name", ["phi", "gpt_neox", "gpt2", "opt", "stablelm"])
def test_a_model_without_heads_is_read_again(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str
) -> None:
    model: Any = load_model(family(name).path)
    arch = load_arch(model.config)
    for block in arch.blocks(model):
        arch.cut(block, groups=torch.tensor([1]))
    save_model(model, family(name).path, tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(tmp_path / "saved")), logits(model))
    decoder = read_checkpoint(tmp_path / "saved")
    assert {block.heads for block in decoder.blocks} == {1}
    assert decoder.parameters + (128 if name == "opt" else 0) == count_parameters(model)


@pytest.mark.whole
@pytest.mark.parametrize("method", ["least_squares", "wanda", "flap"])
@pytest.mark.parametrize("name", FAMILIES)
def test_calibration_prunes_every_architecture(
    family: Callable[[str], Checkpoint], tmp_path: Path, name: str, method: str
) -> None:
    model: Any = load_model(family(name).path)
    arch = load_arch(model.config)
    before = sum_nll(model, ROWS.tolist())
    if method == "flap" and arch.biasless:
        with pytest.raises(EdgeError, match="no biases"):
            prune_units(model, ROWS, Decision([64, 96], [2, 1]), method)
        return
    groups = arch.kv_groups(arch.blocks(model)[0])
    result = prune_units(model, ROWS, Decision([64, 96], [groups, groups]), method)
    assert [arch.sizes(block)["intermediate_size"] for block in arch.blocks(model)] == [64, 96]
    assert sum_nll(model, ROWS.tolist()) < 3 * before
    names = {entry.split(".")[2] for entry in result.importance if entry.startswith("blk.")}
    assert {"attn_q", "attn_output", "ffn_up", "ffn_down"} <= names
    save_model(model, family(name).path, tmp_path / "saved")
    assert read_checkpoint(tmp_path / "saved").blocks[0].intermediate_size == 64


@pytest.mark.whole
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_refit_of_everything_changes_nothing(
    family: Callable[[str], Checkpoint], monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """With biases and parallel halves too, the least-squares target is what the block gave before."""
    monkeypatch.setattr("minigpt_edge.prune.streams.compute_dtype", lambda: dtype)
    model: Any = load_model(family(name).path)
    arch = load_arch(model.config)
    rows = torch.from_numpy(np.random.default_rng(2).integers(0, 399, (40, 40)))
    block = arch.blocks(model)[0]
    with torch.no_grad():  # the last neuron copies the first, so that it can go without loss
        for linear in arch.writers(block)[1]:
            linear.weight[-1] = linear.weight[0]
            if linear.bias is not None:
                linear.bias[-1] = linear.bias[0]
    before = logits(model)
    groups = arch.kv_groups(block)
    prune_units(model, rows, Decision([95, 96], [groups, groups]), "least_squares")
    difference = (logits(model) - before).abs().mean() / before.abs().mean()
    assert difference < 0.02


def test_which_can_have_biases_everywhere(family: Callable[[str], Checkpoint]) -> None:
    """llama.cpp and transformers have none for all matrices of these."""
    biasless = {name for name in FAMILIES if load_arch(family(name).model.config).biasless}
    assert biasless == {name for name in FAMILIES if name.startswith(("qwen", "stablelm"))}
