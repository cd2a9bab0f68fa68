"""llama.cpp's names of a decoder's tensors: the one place that writes them down.

Elsewhere a weight has its canonical name, "blocks.3.query.weight", and `gguf_name` translates it.
"""

from __future__ import annotations

PARTS = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "joined": "attn_qkv",  # query, key and value in one
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
BLOCK = "blk"
ROPE_FACTORS = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """llama.cpp's name of a canonical weight: "blocks.3.query.weight" -> "blk.3.attn_q.weight"."""
    *block, part, kind = name.split(".")
    return (f"{BLOCK}.{block[1]}." if block else "") + f"{PARTS[part]}.{kind}"


EMBEDDING, HEAD = gguf_name("embedding.weight"), gguf_name("head.weight")
