"""Tiny random models of every family, as Hugging Face makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_llama import Checkpoint, write_tokenizer

_SHARED = {"vocab_size": 400, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512}
_GATED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96}
_ROPE = {"rope_type": "default", "rope_theta": 5000.0}
# name -> config class, settings
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {**_GATED, "tie_word_embeddings": True}),
    "qwen2, untied": ("Qwen2", {**_GATED, "tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {**_GATED, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, untied": ("Qwen3", {**_GATED, "tie_word_embeddings": False}),
    "phi": (
        "Phi",
        {**_SIZES, "intermediate_size": 96, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox": (
        "GPTNeoX",
        {**_SIZES, "intermediate_size": 96, "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5}},
    ),
    "gpt_neox, sequential, no biases": (
        "GPTNeoX",
        {
            **_SIZES,
            "intermediate_size": 96,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
        },
    ),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 96}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt, untied": ("OPT", {**_SIZES, "ffn_dim": 96, "tie_word_embeddings": False}),
    "stablelm": (
        "StableLm",
        {
            **_GATED,
            "head_dim": None,
            "num_key_value_heads": 4,
            "use_qkv_bias": True,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5},
        },
    ),
    "stablelm, parallel": (
        "StableLm",
        {
            **_SIZES,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "use_parallel_residual": True,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
        },
    ),
}
HEAD_DIM_32 = {
    "phi",
    "gpt_neox",
    "stablelm",
}  # half of a head is rotated, and onnxruntime wants multiples of 16


def write_family(folder: Path, name: str, tokenizer: dict[str, Any], rows: int = 400) -> Checkpoint:
    """A random model with clear favourites, as a checkpoint directory."""
    import torch
    import transformers

    kind, settings = FAMILIES[name]
    if name in HEAD_DIM_32:
        settings = {**settings, "num_attention_heads": 2}
        if "num_key_value_heads" in settings:
            settings["num_key_value_heads"] = 2
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**_SHARED, "vocab_size": rows}, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            norm = weight.dim() == 1 and parameter.endswith(".weight")
            spread = 0.3 if weight.dim() == 1 else 0.35 if weight.shape[0] >= rows else 0.15
            weight.normal_(1.0 if norm else 0.0, spread)
    model.save_pretrained(folder)
    data = json.loads((folder / "config.json").read_text())
    data.setdefault("tie_word_embeddings", config.tie_word_embeddings)
    (folder / "config.json").write_text(json.dumps(data))
    write_tokenizer(folder, tokenizer)
    return Checkpoint(folder, model)


def narrow(whole: Checkpoint, folder: Path, *, heads: bool) -> Checkpoint:
    """A copy whose last block lacks 32 neurons and, with `heads`, a key/value head and its query heads.

    The model that comes with it has zeros there instead.
    """
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from minigpt_edge_export.architectures import architecture_of

    shutil.copytree(whole.path, folder)
    config = json.loads((folder / "config.json").read_text())
    family = architecture_of(config["model_type"])
    prefix = family.names["block"].format(index=1)
    weights, zeroed = load_file(folder / "model.safetensors"), dict(whole.model.state_dict())

    def drop(part: str, kept: int, axis: int) -> None:
        """Rows (axis 0) or columns (axis 1) from `kept` on, of the matrix and, for rows, of the bias."""
        for kind in ("weight", "bias"):
            name = f"{prefix}{family.names[part]}.{kind}"
            if name not in weights or (kind == "bias" and axis):
                continue
            at = 1 - axis if family.transposed and kind == "weight" else axis
            weights[name] = weights[name].narrow(at, 0, kept).contiguous()
            zeroed[name] = zeroed[name].clone()
            zeroed[name].narrow(at, kept, zeroed[name].shape[at] - kept).zero_()

    for part, axis in (("gate", 0), ("up", 0), ("down", 1)):
        if part in family.names:
            drop(part, 64, axis)
    sizes = {"intermediate_size": 64}
    if heads:
        dim = config["head_dim"]
        for part, axis, count in (
            ("query", 0, 2),
            ("key", 0, 1),
            ("value", 0, 1),
            ("attention_output", 1, 2),
        ):
            drop(part, count * dim, axis)
        sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config["per_layer_config"] = {"1": sizes}
    (folder / "config.json").write_text(json.dumps(config))
    model = type(whole.model)(whole.model.config).float().eval()
    with torch.no_grad():
        model.load_state_dict(zeroed)
    return Checkpoint(folder, model)
