"""Quality between the parts of pruning, against models that are put together by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint, make_corpus
from safetensors.torch import load_file, save_file

from minigpt_edge.evaluation.perplexity import evaluate
from minigpt_edge.prune.attribution import neurons_quality, vocabulary_quality
from minigpt_edge.prune.context import CHECKPOINT, PruneInputs, PruneSettings
from minigpt_edge.prune.methods.registry import get_method
from minigpt_edge.prune.plan import BlockPlan, Plan, write_plan
from minigpt_edge.prune.prepare import prepare
from minigpt_edge.prune.result import write_pruned

GROUPS = ((0, 1), (1,))  # the second block loses one
METHODS = ("least_squares", "flap")  # with a refit, and with biases for what is lost


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribution")
    make_checkpoint(folder / "base")
    make_corpus(folder / "corpus")
    return folder


@pytest.fixture(autouse=True)
def not_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the dense and the pruned model fit together, as they do in one order of inputs."""
    monkeypatch.setattr("minigpt_edge.prune.order.deal_inputs", lambda _model, _arch, importance: importance)


def prune(
    place: Path, out: Path, method: str, *, groups: Any = GROUPS, neurons: int = 32, **given: Any
) -> Any:
    """What is measured between the parts of pruning to a plan."""
    out.mkdir()
    blocks = tuple(BlockPlan(kept, tuple(range(neurons))) for kept in groups)
    write_plan(Plan("base", method, tuple(range(290)), blocks, (1, 1)), out / "given.json")
    settings = PruneSettings(0.2, method, "free", 0, 512, 64, 0, 1)
    inputs = PruneInputs(place / "base", "base", place / "corpus", settings, plan=out / "given.json", **given)
    texts = place / "corpus" / "validation.texts.json"
    context = prepare(inputs, out)
    found = vocabulary_quality(context, texts)
    pruned = get_method(method).pruner("structured").apply(context)
    found |= neurons_quality(context, pruned, texts)
    write_pruned(context, pruned)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_each_part_is_scored_as_a_model_put_together_by_hand(
    method: str, place: Path, tmp_path: Path
) -> None:
    found = prune(place, tmp_path / "pruned", method)
    texts = place / "corpus" / "validation.texts.json"
    dense, cut = (
        load_file(folder / "model.safetensors")
        for folder in (place / "base", tmp_path / "pruned" / CHECKPOINT)
    )
    rows = cut["model.embed_tokens.weight"]
    assert len(rows) == 290

    def score(tensors: dict[str, torch.Tensor], name: str, width: int) -> float:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((tmp_path / "pruned" / CHECKPOINT / "config.json").read_text())
        sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": width}
        config |= {**sizes, "per_layer_config": {"0": sizes, "1": sizes}}
        (folder / "config.json").write_text(json.dumps(config))
        tokenizer = (tmp_path / "pruned" / CHECKPOINT / "tokenizer.json").read_bytes()
        (folder / "tokenizer.json").write_bytes(tokenizer)
        for bias in (name for name in cut if name.endswith("bias")):
            rows = len(tensors[bias.replace("bias", "weight")])
            tensors.setdefault(bias, torch.zeros(rows))
        save_file(tensors, folder / "model.safetensors")
        return evaluate(folder, texts)["bits_per_byte"]

    attention = "layers.1.self_attn"
    whole = {name: tensor for name, tensor in dense.items() if attention in name}
    others = {name: tensor for name, tensor in cut.items() if attention not in name}
    trimmed = score({**dense, "model.embed_tokens.weight": rows}, "trimmed", 48)
    neurons = score({**others, **whole}, "neurons", 32)
    assert found["vocabulary"]["bits_per_byte"] == pytest.approx(trimmed, rel=1e-5)
    assert found["neurons"]["bits_per_byte"] == pytest.approx(neurons, rel=1e-5)
    assert neurons != pytest.approx(
        evaluate(tmp_path / "pruned" / CHECKPOINT, texts)["bits_per_byte"], rel=1e-5
    )


def test_what_was_not_removed_is_not_scored(place: Path, tmp_path: Path) -> None:
    both = ((0, 1), (0, 1))
    assert set(prune(place, tmp_path / "neurons", "least_squares", groups=both)) == {"vocabulary"}
    assert set(prune(place, tmp_path / "groups", "least_squares", neurons=48)) == {"vocabulary"}


def test_a_model_on_disk_is_not_read_again_for_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt_edge.prune.memory.stays_on_disk", lambda *_, **__: True)
    assert prune(place, tmp_path / "disk", "least_squares") == {}
