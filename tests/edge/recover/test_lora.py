"""Recovery by LoRA: adapters alone learn, merge to the old shapes, and resume to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint, make_corpus
from safetensors.torch import load_file

from minigpt_edge.recover.config import LORA_LR, RecoverConfig, TrainingTexts
from minigpt_edge.recover.lora import Adapter
from minigpt_edge.recover.recover import recover
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_file

SMALL: dict[str, Any] = {
    "tokens": 64 * 4 * 8,
    "sequence_length": 64,
    "step_tokens": 256,
    "lr": 2e-2,
    "threads": 1,
    "evaluations": 4,
    "checkpoint_seconds": 0.0,
    "lora_rank": 4,
}
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("lora")
    return make_checkpoint(folder / "model", unequal=True), make_corpus(folder / "corpus")


def run(inputs: tuple[Path, dict[str, Path]], out: Path, **changes: Any) -> dict[str, Any]:
    calls = {name: changes.pop(name) for name in ("before", "on_progress") if name in changes}
    config = RecoverConfig(**{**SMALL, **changes})
    return recover(inputs[0], out, TrainingTexts(**inputs[1]), config, **calls)


def test_the_adapted_model_is_the_old_one_plus_scaled_products(inputs: Any) -> None:
    from minigpt_edge.models.checkpoint import load_model

    model: Any = load_model(inputs[0])
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(0, 300, (2, 16))
    before = model(ids, use_cache=False).logits
    adapter = Adapter(model, 3, seed=0)
    assert torch.equal(model(ids, use_cache=False).logits, before)  # B starts at zero
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapter.trained.parameters()}
    assert len(trained) == 2 * 2 * len(LINEARS)
    with torch.no_grad():
        for parameter in adapter.trained.parameters():
            parameter.normal_(std=0.1)
    pairs = {}
    for index, block in enumerate(model.model.layers):
        for module in LINEARS:
            part = block.self_attn if hasattr(block.self_attn, module) else block.mlp
            layer = getattr(part, module)
            a, b = ([*d.values()][0].weight.detach().clone() for d in (layer.lora_A, layer.lora_B))
            assert a.shape[0] == b.shape[1] == 3
            pairs[f"model.layers.{index}.{'mlp' if part is block.mlp else 'self_attn'}.{module}.weight"] = (
                a,
                b,
            )
    adapted = model(ids, use_cache=False).logits
    adapter.merge()
    assert set(dict(model.named_parameters())) == set(plain)
    for name, parameter in model.named_parameters():
        expected = plain[name] + 2.0 * pairs[name][1] @ pairs[name][0] if name in pairs else plain[name]
        assert torch.allclose(parameter, expected, atol=1e-6), name
    assert torch.allclose(model(ids, use_cache=False).logits, adapted, atol=1e-4)


def test_adapters_change_no_figure_but_their_own(inputs: Any) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover.flops import training_flops

    model: Any = load_model(inputs[0])
    before = training_flops(model, 64)
    Adapter(model, 3, seed=0)
    assert training_flops(model, 64) == before


@pytest.mark.whole
def test_it_learns_and_keeps_shapes_norms_and_embedding(
    inputs: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate

    result = run(inputs, tmp_path)
    assert result["lora_rank"] == 4 and not result["compiled"] and result["best_step"] == 8
    assert (
        result["after"]["bits_per_byte"] < 0.985 * result["before"]["bits_per_byte"]
    )  # under random embeddings
    assert 0 < result["matmul_fraction"] < 1
    scores = evaluate(tmp_path, inputs[1]["validation"])
    assert scores["bits_per_byte"] == pytest.approx(result["after"]["bits_per_byte"], rel=2e-3)
    old, new = (load_file(folder / "model.safetensors") for folder in (inputs[0], tmp_path))
    assert {n: t.shape for n, t in new.items()} == {n: t.shape for n, t in old.items()}
    for name, tensor in new.items():
        adapted = any(f".{linear}." in name for linear in LINEARS)
        assert torch.equal(tensor, old[name]) is not adapted, name
        if adapted:
            assert torch.linalg.matrix_rank(tensor - old[name], atol=1e-5) <= 4
    configs = [json.loads((folder / "config.json").read_text()) for folder in (inputs[0], tmp_path)]
    assert configs[0]["per_layer_config"] == configs[1]["per_layer_config"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.whole
def test_training_checkpoints_hold_the_adapters_alone(inputs: Any, tmp_path: Path) -> None:
    sizes: set[int] = set()

    def look(entry: dict[str, Any]) -> None:
        for path in (tmp_path / ".recovery").rglob("*.safetensors"):
            sizes.add(sum(tensor.numel() for tensor in load_file(path).values()))

    run(inputs, tmp_path, on_progress=look)
    old = load_file(inputs[0] / "model.safetensors")
    shapes = [t.shape for n, t in old.items() if any(f".{linear}." in n for linear in LINEARS)]
    assert sizes == {sum(4 * (rows + columns) for rows, columns in shapes)}


@pytest.mark.whole
@pytest.mark.parametrize("taught", [False, True])
def test_an_interrupted_run_ends_with_the_same_bits(inputs: Any, tmp_path: Path, taught: bool) -> None:
    from minigpt_edge.recover.teacher import Teacher

    lesson: dict[str, Any] = {}
    if taught:
        lesson["teacher"] = Teacher(make_checkpoint(tmp_path / "dense"), tuple(range(300)), 0.8, 8)
    run(inputs, tmp_path / "whole", **lesson)

    def interrupt(entry: dict[str, Any]) -> None:
        if entry.get("step") == 6 and "loss" in entry:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "parts", on_progress=interrupt, **lesson)
    with pytest.raises(EdgeError, match="other settings"):
        run(inputs, tmp_path / "parts", **{**lesson, "lora_rank": 8})
    messages: list[str] = []
    run(inputs, tmp_path / "parts", on_progress=lambda e: messages.append(e.get("message", "")), **lesson)
    assert "going on after step 5" in messages
    assert sha256_file(tmp_path / "parts" / "model.safetensors") == sha256_file(
        tmp_path / "whole" / "model.safetensors"
    )
    if taught:
        run(inputs, tmp_path / "alone")
        weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "alone")]
        assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.whole
def test_the_best_weights_are_kept(inputs: Any, tmp_path: Path) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate

    result = run(inputs, tmp_path, lr=3.0, evaluations=8)
    curve = {e["step"]: e["bits_per_byte"] for e in result["history"] if "bits_per_byte" in e}
    assert result["best_step"] == min(curve, key=lambda step: curve[step]) and len(curve) > 1
    scores = evaluate(tmp_path, inputs[1]["validation"])
    assert scores["bits_per_byte"] == pytest.approx(curve[result["best_step"]], rel=5e-3)


def test_long_training_says_that_it_is_not_compiled(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.recover import session

    monkeypatch.setattr(session, "COMPILE_FROM", 1)
    messages: list[str] = []
    run(inputs, tmp_path, tokens=512, on_progress=lambda e: messages.append(e.get("message", "")))
    assert any("not compiled" in message and "LoRA" in message for message in messages)


@pytest.mark.whole
def test_it_has_a_learning_rate_of_its_own_and_bad_ranks_are_errors(inputs: Any, tmp_path: Path) -> None:
    result = run(inputs, tmp_path / "out", tokens=512, lr=None)
    assert max(entry["lr"] for entry in result["history"][1:]) == LORA_LR
    with pytest.raises(EdgeError, match="rank of LoRA must be at least 1"):
        run(inputs, tmp_path / "bad", lora_rank=0)
