"""Equal widths: stock transformers loads what comes out, with the logits of our loader and our files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
import transformers  # noqa: TID253
from tiny_build import write_corpus, write_model
from tiny_shapes import REAL, SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: TID253

from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.models.checkpoint import load_model, save_model, standard_names
from minigpt_edge.models.sizes import stock_groups, write_sizes
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.layout import layout_of
from minigpt_edge_runtime.errors import EdgeError, UsageError

LISTED = ("TinyLlama-1.1B", "Llama-3.2-1B", "Qwen2.5-0.5B", "SmolLM2-360M")
# name -> sparsities at which its FFN gives enough beside the KV groups that may go
ASKED: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(SHAPES, (0.2, 0.4, 0.6)),
    "SmolLM2-135M": (0.2, 0.4),
    **dict.fromkeys(("GPT-2", "OPT-125M"), (0.1, 0.2)),
    **dict.fromkeys(("Pythia-160M", "StableLM-2-1.6B"), (0.2, 0.4)),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_corpus(folder / "corpus")
    return folder


def make(place: Path, name: str) -> Path:
    """The directory of a tiny model of a known one's shape."""
    if not (place / name).exists():
        kind, settings = SHAPES[name]
        config = getattr(transformers, f"{kind}Config")(**settings)
        write_model(place / name, place / "corpus", config=config)
    return place / name


def prune(place: Path, name: str, **options: Any) -> Stage:
    """The prune stage of a tiny model of a known one's shape."""
    folder = make(place, name)
    given = {
        "calibration_tokens": 1024,
        "min_count": 1,
        "recover": "no",
        "targets": ("onnx-fp32",),
        **options,
    }
    places = {"corpus": (str(place / "corpus"),), "model": str(folder), "work": place / "work"}
    recipe = Recipe(**{**places, **given})
    with Log() as log:
        context = BuildContext(place / "work", recipe, resolve_model(recipe.model), log)
        return prune_stage(context, corpus_stage(context))


def same_in_transformers(checkpoint: Path) -> torch.Tensor:
    """Logits of stock transformers, which are those of our loader; float32 [tokens, vocabulary]."""
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(40)[None] * 5
    with torch.no_grad():
        theirs, ours = (m(ids, use_cache=False).logits[0] for m in (stock, load_model(checkpoint)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    return theirs  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", REAL)
def test_candidates_are_what_transformers_builds(name: str) -> None:
    sizes, expected = REAL[name]
    kind, _ = SHAPES[name]
    config = getattr(transformers, f"{kind}Config")(**sizes, num_hidden_layers=1, vocab_size=8).to_dict()
    config = standard_names({**config, "architectures": None})
    assert stock_groups(config) == expected
    for groups in {expected[0], expected[-2:][0]}:
        heads = config["num_attention_heads"] // config["num_key_value_heads"] * groups
        block = {"intermediate_size": 32, "num_attention_heads": heads, "num_key_value_heads": groups}
        written = {**config}
        write_sizes(written, [block])
        assert "per_layer_config" not in written
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(
                type(getattr(transformers, f"{kind}Config")()).from_dict(written)
            )


@pytest.mark.whole
@pytest.mark.parametrize("name", LISTED)
def test_stock_transformers_loads_the_result(place: Path, name: str) -> None:
    sparsity = {"SmolLM2-360M": 0.2}.get(name, 0.6)
    made = prune(place, name, method="wanda", sparsity=sparsity)
    before, after = made.metrics["kv_groups"]
    assert made.metrics["sparsity"] == pytest.approx(sparsity, abs=0.025)
    assert max(after) < before, "the shape is only tried where KV groups go"
    same_in_transformers(made.path / "checkpoint")
    config = json.loads((made.path / "checkpoint" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"], "mlx-lm looks there"
    assert ("rope_scaling" in config) == (name == "Llama-3.2-1B")
    tokenizer = AutoTokenizer.from_pretrained(made.path / "checkpoint")
    assert max(tokenizer("The licensee shall").input_ids) < config["vocab_size"] < 700
    written = layout_of(read_checkpoint(made.path / "checkpoint")).name
    assert written == ("deci" if name == "Qwen2.5-0.5B" else "llama")  # qwen2 has no key_length


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wanda", "taylor", "contextual", "least_squares"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_loads_at_every_sparsity(place: Path, tmp_path: Path, name: str, method: str) -> None:
    from minigpt_edge_export.gguf.write import write_gguf
    from minigpt_edge_runtime.engines.open import open_engine

    for sparsity in ASKED[name]:
        made = prune(place, name, method=method, sparsity=sparsity, widths="equal")
        logits = same_in_transformers(made.path / "checkpoint")
        file = tmp_path / f"{sparsity}.gguf"
        if name == "Phi-1.5":  # llama.cpp's phi2 takes all heads only
            sparsity = min(sparsity, 0.5)
            made = prune(place, name, method=method, sparsity=sparsity, targets=("gguf-f16",))
            logits = same_in_transformers(made.path / "checkpoint")
        write_gguf(read_checkpoint(made.path / "checkpoint"), file, file_type="f32")
        with open_engine(file, 64, 1, logits_all=True) as engine:
            theirs = torch.from_numpy(engine.logits([5 * index for index in range(40)])).log_softmax(-1)
        assert (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1).mean() < 1e-5


def test_without_blocks_it_loads_too(place: Path) -> None:
    """Qwen's config lists a type of attention for each block."""
    base = resolve_model(str(make(place, "Qwen2.5-0.5B")))
    model: Any = load_model(base.path)
    load_arch(model.config).keep_blocks(model, [1])
    save_model(model, base.path, place / "without")
    same_in_transformers(place / "without")


@pytest.mark.whole
def test_blocks_that_differ_become_equal(place: Path) -> None:
    """A result of ours as a base: blocks of other sizes, one with groups that transformers does not take."""
    base = resolve_model(str(make(place, "SmolLM2-360M")))
    model: Any = load_model(base.path)
    arch = load_arch(model.config)
    for block, (groups, width) in zip(arch.blocks(model), ((3, 320), (4, 288)), strict=True):
        arch.cut(block, groups=torch.arange(groups), kept_neurons=torch.arange(width))
    save_model(model, base.path, place / "uneven")
    assert read_checkpoint(place / "uneven").blocks[0].kv_heads == 3
    made = prune(place, "uneven", method="wanda", sparsity=0.3)
    assert made.metrics["kv_groups"] == [[3, 4], [2, 2]]
    assert made.metrics["widths"][0] == [320, 288] and len(set(made.metrics["widths"][1])) == 1
    assert made.metrics["sparsity"] == pytest.approx(0.3, abs=0.025)
    same_in_transformers(made.path / "checkpoint")


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.6}, pytest.param({"max_params": 150_000}, marks=pytest.mark.slow)]
)
def test_what_can_not_be_reached_is_said_before_anything_is_measured(
    place: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("measured")

    for name in ("calibrate.score_blocks", "backward.backward", "streams.Stream"):
        monkeypatch.setattr(f"minigpt_edge.prune.{name}", fail)
    with pytest.raises(EdgeError, match="can't be removed|do not meet the limit") as caught:
        prune(place, "GPT-2", method="taylor", **options)
    assert caught.value.hint


def test_a_threshold_has_no_widths() -> None:
    with pytest.raises(UsageError, match="--widths does nothing with --threshold"):
        Recipe(corpus=("x",), method="contextual", threshold=0.1, widths="equal")
