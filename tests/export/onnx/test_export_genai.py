"""onnxruntime-genai runs an exported directory as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest
from onnx_helpers import exported
from tiny_llama import Checkpoint, edit_config

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.onnx.genai import genai_config
from minigpt_edge_runtime.engines.open import open_engine

PROMPT = [0, *np.random.default_rng(5).integers(3, 399, 12).tolist()]
LENGTH = 48


def by_genai(directory: Path, prompt: Sequence[int]) -> list[int]:
    model = onnxruntime_genai.Model(str(directory))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=LENGTH)  # greedy is what the directory asks for
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


def by_engine(model: Path, prompt: Sequence[int]) -> list[int]:
    with open_engine(model, 64, 1) as engine:
        said, logits = list(prompt), engine.eval(prompt)
        while len(said) < LENGTH and not engine.is_end(said[-1]):
            said.append(int(logits.argmax()))
            logits = engine.eval(said[-1:])
    return said


def by_torch(checkpoint: Checkpoint, prompt: Sequence[int]) -> list[int]:
    import torch

    return checkpoint.model.generate(torch.tensor([prompt]), max_length=LENGTH, do_sample=False)[0].tolist()


def test_fp32_says_what_the_checkpoint_says(unequal: Checkpoint, tmp_path: Path) -> None:
    model = exported(unequal, tmp_path / "model", "fp32")
    expected = by_torch(unequal, PROMPT)
    assert len(set(expected)) > 10
    assert by_genai(model.parent, PROMPT) == expected
    assert by_engine(model, PROMPT) == expected


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "int4-64"])
def test_every_precision_says_in_genai_what_it_says_here(
    unequal: Checkpoint, tmp_path: Path, name: str
) -> None:
    model = exported(unequal, tmp_path / "model", name)
    assert by_genai(model.parent, PROMPT) == by_engine(model, PROMPT)


def test_genai_reads_its_tokenizer(unequal: Checkpoint, tmp_path: Path) -> None:
    model = exported(unequal, tmp_path / "model", "fp32")
    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(model.parent)))
    with open_engine(model, 64, 1) as engine:
        for text in ("The licensee shall not remove 1,345 notices.", "法律 Закон\n    return x"):
            ids = engine.tokenize(text)
            assert tokenizer.encode(text).tolist() == ids and tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, (1, [2, 0], 2)),
        ({"eos_token_id": [2, 5]}, None, (1, [2, 0, 5], 2)),
        ({}, {"eos_token_id": [5, 2], "pad_token_id": 0}, (1, [2, 0, 5], 0)),
    ],
)
def test_special_tokens_are_those_that_generation_uses(
    copied: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[Any, ...]
) -> None:
    edit_config(copied, **config)
    if generation is not None:
        (copied / "generation_config.json").write_text(json.dumps(generation))
    model = genai_config(read_checkpoint(copied), "model.onnx")["model"]
    assert tuple(model[f"{role}_token_id"] for role in ("bos", "eos", "pad")) == expected


def test_genai_reserves_no_longer_cache_than_needed(copied: Path) -> None:
    edit_config(copied, max_position_embeddings=131_072)
    config = genai_config(read_checkpoint(copied), "model.onnx")
    assert config["model"]["context_length"] == 131_072 and config["search"]["max_length"] == 2048
