"""A tiny pretrained LLaMA and a small corpus for whole builds in seconds: real tokenizer, real stages."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TEXT = (
    "the licensee shall not distribute copy modify or sublicense any part of the work without prior "
    "written permission of the licensor and this agreement terminates upon breach provided that "
    "notice is given warranty liability damages copyright holder contributor recipient software "
    "source object code form redistribution conditions disclaimer notwithstanding hereunder governed "
    "by laws of state"
)
WORDS = TEXT.split()


def write_corpus(folder: Path, documents: int = 60, words: int = 260) -> Path:
    """Text files of made-up clauses, all different."""
    folder.mkdir(parents=True)
    maker = random.Random(0)
    for index in range(documents):
        sentences = []
        for _ in range(words // 13):
            sentences.append(" ".join(maker.choices(WORDS, k=12)).capitalize() + ".")
        (folder / f"{index:03}.txt").write_text(
            f"Licence {index}\n\n" + "\n".join(sentences), encoding="utf-8"
        )
    return folder


def write_model(folder: Path, corpus: Path, *, blocks: int = 4, config: Any = None) -> Path:
    """A random model with a byte-level BPE trained on the corpus, as a Hugging Face directory.

    Args:
        config: transformers' configuration but for the vocabulary and its ids; by default a LLaMA's of so
            many blocks.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [path.read_text() for path in sorted(corpus.glob("*.txt"))]
    rare = ["a quick brown fox jumps over lazy dogs and zebras", "quantum chromodynamics of hadrons"] * 20
    tokenizer.train_from_iterator(texts + rare, trainer)
    torch.manual_seed(0)
    config = config or LlamaConfig(
        hidden_size=32,
        intermediate_size=1024,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    config.vocab_size = tokenizer.get_vocab_size()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 2, None
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


QUICK = (
    *("--calibration-tokens", "4096", "--recover-tokens", "32768"),
    *("--threads", "1", "--target", "gguf-q8"),
)
SMALL = (*QUICK, "--min-count", "1", "--sparsity", "0.2")
