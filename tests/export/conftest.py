"""Checkpoints made once per session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import END, EQUAL, START, TEXTS, UNEQUAL, Checkpoint, build_model, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_json() -> dict[str, Any]:
    """A byte-level BPE of 400 tokens with single digits, three specials and one added token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=398,
        special_tokens=[END, START, "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<article>", special=False, normalized=False)])
    return json.loads(tokenizer.to_str())


@pytest.fixture(scope="session")
def make(
    tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Checkpoint]:
    """make(blocks, **config): a checkpoint; the same arguments give the same one, not to be changed."""
    made: dict[str, Checkpoint] = {}

    def make(blocks: Sequence[tuple[int, int, int]], **changes: Any) -> Checkpoint:
        from safetensors.torch import save_file

        key = repr((blocks, sorted(changes.items(), key=lambda item: item[0])))
        if key not in made:
            path = tmp_path_factory.mktemp("checkpoint")
            model, config = build_model(blocks, **changes)
            tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
            weights = {name: w.contiguous() for name, w in model.state_dict().items() if name not in tied}
            save_file(weights, path / "model.safetensors")
            (path / "config.json").write_text(json.dumps(config))
            write_tokenizer(path, tokenizer_json)
            made[key] = Checkpoint(path, model)
        return made[key]

    return make


@pytest.fixture(scope="session")
def equal(make: Callable[..., Checkpoint]) -> Checkpoint:
    return make(EQUAL)


@pytest.fixture(scope="session")
def unequal(make: Callable[..., Checkpoint]) -> Checkpoint:
    return make(UNEQUAL)


@pytest.fixture
def copied(equal: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint directory that a test may damage."""
    return Path(shutil.copytree(equal.path, tmp_path / "checkpoint"))
