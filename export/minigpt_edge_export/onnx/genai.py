"""genai_config.json: what onnxruntime-genai has to know to run a decoder's directory."""

from __future__ import annotations

from typing import Any

from minigpt_edge_export.decoder import Decoder
from minigpt_edge_export.tokens.special_tokens import special_tokens
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

# genai reserves the whole cache at once; a program asks for another length when it generates
_LONGEST = 2048


def genai_config(decoder: Decoder, file: str) -> dict[str, Any]:
    """The configuration, in onnxruntime-genai's terms.

    Key/value head counts that differ between blocks are read from the graph's own inputs there; the number
    given here is the largest.
    """
    ids = _special_ids(decoder)
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


def _special_ids(decoder: Decoder) -> dict[str, Any]:
    """bos, eos and pad token ids; eos has every token that ends a generation."""
    tokenizer = open_tokenizer(decoder.directory / TOKENIZER, "use an undamaged tokenizer.json")
    special = special_tokens(decoder.directory, tokenizer, decoder.vocab_size)
    ends, first = list(special.ends), special.ends[0]
    return {
        "bos_token_id": special.ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else first,
        "pad_token_id": special.ids.get("pad", first),
    }
