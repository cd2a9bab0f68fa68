"""GGUF files in circulation as base models: read as llama.cpp reads them, or named for what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from gguf_sources import LLAMA3, changed_gguf, llama_gguf, quantized
from source_helpers import SCRIPTS, tiny_tokenizer
from tiny_llama import EQUAL, TEXTS
from tiny_sentencepiece import sentencepiece_json
from tokenizers import Tokenizer

from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.models.checkpoint import load_model, read_config
from minigpt_edge.models.rope_factors import rope_parameters
from minigpt_edge_export.decoder import llama3_factors, read_checkpoint
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json

IDS = np.random.default_rng(1).integers(3, 400, 60).tolist()
UNEQUAL = [(96, 4, 2), (64, 2, 1), (160, 4, 2)]
REFUSED = [(96, 6, 3), (96, 6, 3)]  # heads that transformers does not take on a hidden size of 64


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    return json.loads(tiny_tokenizer().to_str())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def plain(tokenizer: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_gguf(tmp_path_factory.mktemp("gguf") / "plain.gguf", tokenizer, EQUAL, kind="f16")


def divergence(file: Path) -> float:
    """Mean nats between llama.cpp's distributions of a few tokens and those of what was converted."""
    with torch.no_grad():
        model: Any = load_model(resolve_model(str(file)).path)
        ours = model(torch.tensor([IDS]), use_cache=False).logits[0].log_softmax(-1)
    with open_engine(file, 128, 1, logits_all=True) as engine:
        theirs = torch.from_numpy(engine.logits(IDS)).log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize(
    ("blocks", "changes"),
    [
        (EQUAL, {"rope_parameters": LLAMA3}),
        (EQUAL, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (UNEQUAL, {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
        (REFUSED, {"head_dim": 8, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 4}),
    ],
)
def test_our_own_exports_come_back(
    tokenizer: dict[str, Any], tmp_path: Path, blocks: Any, changes: dict[str, Any]
) -> None:
    file = llama_gguf(tmp_path / "a.gguf", tokenizer, blocks, **changes)
    before, after = read_checkpoint(tmp_path / "a"), read_checkpoint(resolve_model(str(file)).path)
    assert (after.blocks, after.style, after.rope) == (before.blocks, before.style, before.rope)
    for name in before.shapes():
        np.testing.assert_array_equal(after.load(name), before.load(name))
    assert divergence(file) < 1e-4


@pytest.mark.parametrize(
    ("theta", "dim", "factor", "high", "old"),
    [
        (5e5, 64, 32.0, 4.0, 8192),  # Llama 3.2
        (5e5, 128, 8.0, 4.0, 8192),  # Llama 3.1
        (1e6, 16, 8.0, 4.0, 256),
        (1e4, 96, 2.5, 3.0, 3000),
        (5e5, 8, 8.0, 1.5, 64),
    ],
)
def test_scaling_follows_from_its_factors(
    theta: float, dim: int, factor: float, high: float, old: int
) -> None:
    given = {**LLAMA3, "rope_theta": theta, "factor": factor, "high_freq_factor": high}
    given["original_max_position_embeddings"] = old
    stored = np.float32(llama3_factors(theta, dim, given))
    found = rope_parameters(stored, theta)
    assert found is not None
    if dim > 16:
        assert found == given
    np.testing.assert_allclose(llama3_factors(theta, dim, found), stored, rtol=1e-5)
    turned = stored.copy()
    turned[-2] *= 1.7
    assert rope_parameters(turned, theta) is None or dim == 8


KEY = "llama.rope.scaling."


@pytest.mark.parametrize(
    ("metadata", "rope"),
    [
        ({f"{KEY}factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({f"{KEY}type": "none", f"{KEY}factor": 4.0}, {"rope_type": "default"}),
    ],
)
def test_linear_scaling_is_read_as_llama_cpp_does(
    plain: Path, tmp_path: Path, metadata: dict[str, Any], rope: dict[str, Any]
) -> None:
    file = changed_gguf(plain, tmp_path / "a.gguf", metadata)
    assert divergence(file) < 1e-4
    config = read_config(resolve_model(str(file)).path)
    assert config["rope_parameters"] == {"rope_theta": 5000.0, **rope}


def test_a_head_that_is_the_embedding_once_more_is_left_out(plain: Path, tmp_path: Path) -> None:
    weights = read_checkpoint(resolve_model(str(plain)).path).load("embedding.weight")
    same = {"token_embd.weight": weights, "output.weight": weights}
    other = {"token_embd.weight": weights, "output.weight": weights + np.float32(0.01)}
    tied = [
        read_config(resolve_model(str(changed_gguf(plain, tmp_path / f"{n}.gguf", tensors=made))).path)
        for n, made in enumerate((same, other))
    ]
    assert [config["tie_word_embeddings"] for config in tied] == [True, False]


def test_every_end_token_is_kept(plain: Path, tmp_path: Path) -> None:
    ends = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 2}
    file = changed_gguf(plain, tmp_path / "a.gguf", ends)
    folder = resolve_model(str(file)).path
    assert read_json(folder / "generation_config.json")["eos_token_id"] == [2, 0]
    assert read_json(folder / "config.json")["eos_token_id"] == 2


_ONES = np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "architecture", "message"),
    [
        ({f"{KEY}type": "yarn", f"{KEY}factor": 4.0}, {}, "llama", "scaled as 'yarn'"),
        ({}, {"rope_factors_long.weight": _ONES}, "llama", "holds rope_factors_long.weight"),
        ({}, {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)}, "llama", "no scaling of llama3"),
        ({"llama.expert_count": 8}, {}, "llama", "experts"),
        ({"llama.attention.causal": False}, {}, "llama", "encoder"),
        ({"llama.rope.dimension_count": 8}, {}, "llama", "partly rotated"),
        ({"llama.attention.head_count": [4, 0]}, {}, "llama", "blocks without attention"),
        ({"llama.attention.head_count_kv": [2, 1]}, {}, "llama", "other numbers of heads share"),
        ({}, {}, "gpt2", "'gpt2' can't be read"),
        ({"tokenizer.ggml.pre": "default"}, {}, "llama", "does not name its pre-tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, {}, "llama", "WordPiece"),
        ({"tokenizer.ggml.model": "none", "tokenizer.ggml.tokens": None}, {}, "llama", "no vocabulary"),
    ],
)
def test_what_is_no_plain_model_is_named(
    plain: Path, tmp_path: Path, metadata: Any, tensors: Any, architecture: str, message: str
) -> None:
    file = changed_gguf(plain, tmp_path / "a.gguf", metadata, tensors, architecture)
    with pytest.raises(EdgeError, match=message) as caught:
        resolve_model(str(file))
    assert caught.value.hint


def test_a_vocabulary_alone_and_types_of_other_builds_are_named(plain: Path, tmp_path: Path) -> None:
    from minigpt_edge_runtime.formats.gguf_header import read_header

    names = {tensor.name: None for tensor in read_header(plain).tensors}
    with pytest.raises(EdgeError, match="no weights"):
        resolve_model(str(changed_gguf(plain, tmp_path / "vocabulary.gguf", tensors=names)))
    data = plain.read_bytes()
    at = data.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    for kind, message in ((31, "Q4_0_4_4.* any more"), (140, "type 140, which llama.cpp does not have")):
        (tmp_path / "odd.gguf").write_bytes(data[:at] + kind.to_bytes(4, "little") + data[at + 4 :])
        with pytest.raises(EdgeError, match=message):
            resolve_model(str(tmp_path / "odd.gguf"))


@pytest.mark.parametrize(
    "metadata",
    [
        {"tokenizer.ggml.add_space_prefix": False},
        {"tokenizer.ggml.add_eos_token": True},
        {f"tokenizer.ggml.{name}": None for name in ("bos_token_id", "eos_token_id", "add_bos_token")},
    ],
)
def test_sentencepiece_is_read_as_llama_cpp_does(tmp_path: Path, metadata: dict[str, Any]) -> None:
    import llama_cpp

    data = sentencepiece_json(TEXTS * 3)
    source = tmp_path / "source"
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    llama_gguf(source.with_suffix(".gguf"), data, EQUAL[:1], names=names)
    file = changed_gguf(source.with_suffix(".gguf"), tmp_path / "a.gguf", metadata)
    model = resolve_model(str(file))
    ours = Tokenizer.from_file(str(model.tokenizer))
    theirs = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    try:
        for text in (
            *SCRIPTS,
            *TEXTS,
            "a  b   c",
            " x",
            "",
            "  two",
            "</s>hi <s> there",
            "x y</s> z",
            " \n\t",
        ):
            for special in (True, False):
                expected = theirs.tokenize(text.encode(), add_bos=special, special=True)
                assert ours.encode(text, add_special_tokens=special).ids == expected, text
    finally:
        theirs.close()


TYPES = ("Q4_0", "Q8_0", "IQ4_NL")
MORE = (
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K_M",
    "Q4_K_M",
    "Q5_K_M",
    "Q6_K",
    "IQ3_S",
    "IQ4_XS",
    "TQ2_0",
    "BF16",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TYPES, *MORE])
@pytest.mark.parametrize("blocks", [[(512, 8, 4)], [(512, 8, 4), (256, 4, 2)]])
def test_quantized_files_are_dequantized_as_llama_cpp_does(
    tokenizer: dict[str, Any], tmp_path: Path, kind: str, blocks: Any
) -> None:
    """llama.cpp's own F32 copy of a quantized file computes without rounding activations to 8 bits."""
    source = llama_gguf(tmp_path / "a.gguf", tokenizer, blocks, hidden_size=256, head_dim=32)
    small = quantized(source, tmp_path / "small.gguf", kind)
    wide = quantized(small, tmp_path / "wide.gguf", "F32")
    ours, theirs = (read_checkpoint(resolve_model(str(file)).path) for file in (small, wide))
    for name in theirs.shapes():
        np.testing.assert_allclose(ours.load(name), theirs.load(name), rtol=1e-6, atol=1e-9)
    assert divergence(wide) < 1e-3
    assert divergence(small) < 0.1
