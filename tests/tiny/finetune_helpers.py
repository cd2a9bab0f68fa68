"""A tiny checkpoint, corpus split and validation file made on the spot."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

START = "<|endoftext|>"
TEXT = "the licence grants you permission to use copy modify merge publish and distribute this software"
WORDS = TEXT.split()


def sentences(seed: int, count: int) -> str:
    """Text with some regularity to learn."""
    rng = random.Random(seed)
    return " ".join(" ".join(rng.sample(WORDS, 6)) + "." for _ in range(count))


def make_tokenizer(folder: Path) -> None:
    """A real byte-level BPE of 300 tokens trained on the words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentences(i, 20) for i in range(20)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_checkpoint(folder: Path, *, unequal: bool = False, **changes: Any) -> Path:
    """A two-block LLaMA with random weights; `unequal`: the second block is narrower in both parts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from minigpt_edge.models.checkpoint import load_model, save_model

    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            **changes,
        }
    )
    whole = folder / "whole" if unequal else folder
    LlamaForCausalLM(config).save_pretrained(whole)
    make_tokenizer(whole)
    path = whole / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "minigpt_edge": {"document_start": START}}))
    if unequal:
        from minigpt_edge.models import archs

        model = load_model(whole)
        arch = archs.load_arch({"model_type": "llama"})
        arch.cut(arch.blocks(model)[1], groups=torch.tensor([1]), kept_neurons=torch.arange(32))
        save_model(model, whole, folder)
    return folder


def make_corpus(folder: Path, documents: int = 40) -> dict[str, Path]:
    """train.jsonl and validation.texts.json, as the arguments of `TrainingTexts`."""
    folder.mkdir(parents=True, exist_ok=True)
    train, validation = folder / "train.jsonl", folder / "validation.texts.json"
    texts = [sentences(100 + i, 20) for i in range(documents)]
    lines = [json.dumps({"text": t, "id": hashlib.sha256(t.encode()).hexdigest()}) for t in texts]
    train.write_text("\n".join(lines) + "\n")
    windows = [sentences(900 + i, 6) for i in range(3)]
    validation.write_text(
        json.dumps(
            {
                "document_start": START,
                "split": "validation",
                "windows": [
                    {"text": t, "bytes": len(t.encode()), "base_tokens": len(t.split())} for t in windows
                ],
            }
        )
    )
    return {"train": train, "validation": validation}
