"""A checkpoint with blocks of different sizes as a torch model, for environments without this project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_model(directory: Path) -> Any:
    """A LLaMA checkpoint in float32, each block sized as `per_layer_config` says."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((directory / "config.json").read_text())
    sizes = config.pop("per_layer_config", {})
    model = LlamaForCausalLM(LlamaConfig(**config))
    for index, size in sizes.items():
        block = model.model.layers[int(index)]
        attention, mlp = block.self_attn, block.mlp
        width, hidden = size["intermediate_size"], config["hidden_size"]
        q, kv = (size[key] * attention.head_dim for key in ("num_attention_heads", "num_key_value_heads"))
        attention.num_key_value_groups = size["num_attention_heads"] // size["num_key_value_heads"]
        for owner, name, rows, columns in (
            (attention, "q_proj", q, hidden),
            (attention, "k_proj", kv, hidden),
            (attention, "v_proj", kv, hidden),
            (attention, "o_proj", hidden, q),
            (mlp, "gate_proj", width, hidden),
            (mlp, "up_proj", width, hidden),
            (mlp, "down_proj", hidden, width),
        ):
            old = getattr(owner, name)
            setattr(owner, name, torch.nn.Linear(columns, rows, bias=old.bias is not None))
    missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval()
