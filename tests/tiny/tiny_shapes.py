"""Well-known models scaled down: their numbers of heads, ratios and settings, with smaller heads."""

from __future__ import annotations

from typing import Any

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _shape(hidden: int, ffn: int, heads: int, groups: int | None = None, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads}
    own = {"num_key_value_heads": groups} if groups else {}
    return {**sizes, **own, "num_hidden_layers": 2, "max_position_embeddings": 1024, **more}


def _rope(theta: float, share: float | None = None) -> dict[str, Any]:
    partial = {"partial_rotary_factor": share} if share else {}
    return {"rope_type": "default", "rope_theta": theta, **partial}


# name -> transformers' class, settings; heads of 8 values where the model has 64, of 16 where it has 128.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "TinyLlama-1.1B": ("Llama", _shape(256, 704, 32, 4, rope_parameters=_rope(1e4))),
    "Llama-3.2-1B": (
        "Llama",
        _shape(256, 1024, 32, 8, tie_word_embeddings=True, rope_parameters=_LLAMA3, head_dim=8),
    ),
    "Llama-3.2-3B": (
        "Llama",
        _shape(384, 1024, 24, 8, tie_word_embeddings=True, rope_parameters=_LLAMA3, head_dim=16),
    ),
    "Qwen2.5-0.5B": (
        "Qwen2",
        _shape(112, 608, 14, 2, tie_word_embeddings=True, rope_parameters=_rope(1e6)),
    ),
    "Qwen2.5-1.5B": (
        "Qwen2",
        _shape(192, 1120, 12, 2, tie_word_embeddings=True, rope_parameters=_rope(1e6)),
    ),
    "Qwen3-0.6B": (
        "Qwen3",
        _shape(128, 384, 16, 8, tie_word_embeddings=True, rope_parameters=_rope(1e6), head_dim=16),
    ),
    "SmolLM2-135M": ("Llama", _shape(72, 192, 9, 3, tie_word_embeddings=True, rope_parameters=_rope(1e5))),
    "SmolLM2-360M": ("Llama", _shape(120, 320, 15, 5, tie_word_embeddings=True, rope_parameters=_rope(1e5))),
    "SmolLM2-1.7B": (
        "Llama",
        _shape(256, 1024, 32, 32, tie_word_embeddings=True, rope_parameters=_rope(130000.0)),
    ),
    "Phi-1.5": ("Phi", _shape(256, 1024, 32, rope_parameters=_rope(1e4, 0.5))),
    "GPT-2": ("GPT2", {"n_embd": 96, "n_head": 12, "n_layer": 2, "n_positions": 1024}),
    "OPT-125M": (
        "OPT",
        {**_shape(96, 384, 12), "ffn_dim": 384, "word_embed_proj_dim": 96},
    ),
    "Pythia-160M": ("GPTNeoX", _shape(96, 384, 12, rope_parameters=_rope(1e4, 0.25))),
    "StableLM-2-1.6B": (
        "StableLm",
        _shape(256, 704, 32, 32, use_qkv_bias=True, rope_parameters=_rope(1e4, 0.25)),
    ),
}

# name -> the sizes as published, and the numbers of KV groups that transformers loads of them
_ALL = list(range(1, 33))


def _real(
    hidden: int, heads: int, groups: int, allowed: list[int], **more: Any
) -> tuple[dict[str, Any], list[int]]:
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups}
    return {**sizes, "intermediate_size": 64, "max_position_embeddings": 8, **more}, allowed


REAL: dict[str, tuple[dict[str, Any], list[int]]] = {
    "TinyLlama-1.1B": _real(2048, 32, 4, [1, 2, 4]),
    "Llama-3.2-1B": _real(2048, 32, 8, [1, 2, 4, 8], head_dim=64),
    "Llama-3.2-3B": _real(3072, 24, 8, [1, 2, 4, 8], head_dim=128),
    "Qwen2.5-0.5B": _real(896, 14, 2, [1, 2]),
    "Qwen2.5-1.5B": _real(1536, 12, 2, [1, 2]),
    "Qwen3-0.6B": _real(1024, 16, 8, _ALL[:8], head_dim=128),
    "SmolLM2-135M": _real(576, 9, 3, [1, 2, 3]),
    "SmolLM2-360M": _real(960, 15, 5, [1, 2, 4, 5]),
    "SmolLM2-1.7B": _real(2048, 32, 32, [1, 2, 4, 8, 16, 32]),
    "Phi-1.5": _real(2048, 32, 32, _ALL),
    "GPT-2": ({"n_embd": 768, "n_head": 12, "n_positions": 8}, [12]),
    "OPT-125M": ({"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 8}, [12]),
    "Pythia-160M": ({"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 8}, [12]),
    "StableLM-2-1.6B": _real(2048, 32, 32, [32]),
}
