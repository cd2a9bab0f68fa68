"""Tiny random LLaMA checkpoints with real tokenizers, and the files that go with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS = [
    "The licensee shall not remove 12 or 1,345 notices from the Software, provided that it's unmodified.",
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software.",
    "Dieser Vertrag unterliegt dem Recht der Schweiz; Artikel 97 gilt.",
    "法律面前人人平等。 Закон есть закон. def f(x):\n    return x + 1\n",
]
END, START = "<|endoftext|>", "<|im_start|>"
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}{% endfor %}"
SMOLLM = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory and the torch model it holds."""

    path: Path
    model: Any

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits of every token, float32 [T, vocab], as numpy."""
        import torch

        with torch.no_grad():
            return self.model(torch.tensor([list(tokens)])).logits[0].numpy()


EQUAL = [(96, 4, 2), (96, 4, 2)]
UNEQUAL = [(96, 4, 2), (64, 2, 1), (160, 2, 2)]


def write_tokenizer(directory: Path, data: dict[str, Any], **settings: Any) -> None:
    """tokenizer.json and the small files beside it."""
    (directory / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    names = {"bos_token": START, "eos_token": "<|im_end|>", "unk_token": END, **settings}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def edit_config(directory: Path, **changes: Any) -> None:
    """Change config.json; None removes a key."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def build_model(blocks: Sequence[tuple[int, int, int]], **changes: Any) -> tuple[Any, dict[str, Any]]:
    """A random LLaMA with blocks of (width, heads, key/value heads), and its config.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    settings: dict[str, Any] = {
        "vocab_size": 400, "hidden_size": 64, "num_hidden_layers": len(blocks), "head_dim": 16,
        "intermediate_size": max(block[0] for block in blocks),
        "num_attention_heads": max(block[1] for block in blocks),
        "num_key_value_heads": max(block[2] for block in blocks),
        "max_position_embeddings": 512, "initializer_range": 0.15, "tie_word_embeddings": True,
        "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    }  # fmt: skip
    torch.set_num_threads(1)  # for products this small, threads only wait for each other
    config = LlamaConfig(**{**settings, **changes})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float().eval()
    data = config.to_dict()
    if len(set(blocks)) > 1:
        for index, (width, heads, kv_heads) in enumerate(blocks):
            own = copy.deepcopy(config)
            own.intermediate_size, own.num_attention_heads, own.num_key_value_heads = width, heads, kv_heads
            model.model.layers[index].mlp = LlamaMLP(own)
            model.model.layers[index].self_attn = LlamaAttention(own, index)
        data["per_layer_config"] = {
            str(index): dict(
                zip(("intermediate_size", "num_attention_heads", "num_key_value_heads"), block, strict=True)
            )
            for index, block in enumerate(blocks)
        }
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large embeddings make clear favourites: near ties would turn with the rounding.
            scale = {"norm": 0.3, "bias": 0.3, "embed": 0.35, "lm_head": 0.35}
            spread = next((scale[part] for part in scale if part in name), config.initializer_range)
            weight.normal_(1.0 if "norm" in name else 0.0, spread)
    return model.float().eval(), data


def write_reference(path: Path, checkpoint: Checkpoint, rows: Sequence[Sequence[int]]) -> None:
    """The reference file that `verify_logits` reads."""
    import numpy as np
    from safetensors.numpy import save_file

    logits = np.stack([checkpoint.logits(row) for row in rows]).astype(np.float32)
    save_file({"tokens": np.array(rows, dtype=np.int32), "logits": logits}, path)
