"""Tokenizers of other families, from the vocabularies that llama.cpp ships for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARIES = (
    "llama-cpp-python==0.3.36",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    "vendor/llama.cpp/models/ggml-vocab-*.gguf",
)


def write_vocabulary(source: Path, target: Path) -> dict[str, str]:
    """The tokenizer of a GGUF file without weights as Hugging Face files; the texts of BOS and EOS."""
    from gguf import GGUFReader

    from minigpt_edge.models.from_gguf import write_tokenizer

    fields: dict[str, Any] = {name: f.contents() for name, f in GGUFReader(source).fields.items()}
    fields.setdefault("tokenizer.ggml.pre", "gpt-2")  # the file of GPT-NeoX is older than the field
    ids = {role: fields[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos")}
    config = {f"{role}_token_id": index for role, index in ids.items()}
    config |= {"pad_token_id": None, "max_position_embeddings": 2048, "minigpt_edge": {}}
    write_tokenizer(fields, config, target)
    return {role: fields["tokenizer.ggml.tokens"][index] for role, index in ids.items()}
