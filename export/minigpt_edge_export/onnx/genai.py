"""genai_config.json: what onnxruntime-genai has to know to run a decoder's directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_runtime.files import read_json

# genai reserves the whole cache at once; a program asks for another length when it generates
_LONGEST = 2048


def genai_config(decoder: Decoder, file: str) -> dict[str, Any]:
    """The configuration, in onnxruntime-genai's terms.

    Key/value head counts that differ between blocks are read from the graph's own inputs there; the number
    given here is the largest.
    """
    ids = _special_ids(decoder.directory)
    return {
        "model": {
            **ids,
            "context_length": decoder.context_length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": file,
                "head_size": decoder.head_dim,
                "hidden_size": decoder.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": max(block.heads for block in decoder.blocks),
                "num_hidden_layers": len(decoder.blocks),
                "num_key_value_heads": max(block.kv_heads for block in decoder.blocks),
            },
            "type": "llama",
            "vocab_size": decoder.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": min(decoder.context_length, _LONGEST),
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _special_ids(directory: Path) -> dict[str, Any]:
    """bos, eos and pad token ids, of generation_config.json where it has them, else of config.json."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):
        if (directory / name).is_file():
            content = read_json(directory / name)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if content.get(key) is not None:
                    found[key] = content[key]
    end = found.get("eos_token_id", 0)
    first = end[0] if isinstance(end, list) else end
    return {"bos_token_id": first, "eos_token_id": end, "pad_token_id": first, **found}
