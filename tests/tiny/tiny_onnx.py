"""The ONNX directory of a tiny GGUF file: the same weights for the other engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file
from tiny_gguf import BLOCKS, CONTEXT, FFN, HEADS, HIDDEN, KV_HEADS
from tokenizers import Tokenizer

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import PRECISIONS

SETTINGS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def make_checkpoint(model: Path, directory: Path, tokenizer: Tokenizer) -> Path:
    """The Hugging Face directory that would become the GGUF file."""
    directory.mkdir()
    weights = {}
    reader = gguf.GGUFReader(model)
    for tensor in reader.tensors:
        *block, part, _ = tensor.name.split(".")
        array = np.array(tensor.data)
        if part in ("attn_q", "attn_k"):  # GGUF has the two halves of a rotary pair side by side
            heads = HEADS if part == "attn_q" else KV_HEADS
            array = array.reshape(heads, -1, 2, HIDDEN).swapaxes(1, 2).reshape(array.shape)
        name = f"model.layers.{block[1]}.{NAMES[part]}" if block else NAMES[part]
        weights[f"{name}.weight"] = np.ascontiguousarray(array)
    save_file(weights, directory / "model.safetensors")
    config = {
        "model_type": "llama", "vocab_size": tokenizer.get_vocab_size(), "hidden_size": HIDDEN,
        "num_hidden_layers": BLOCKS, "intermediate_size": FFN, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    pieces = tokenizer.token_to_id("<s>") is not None
    settings = {"bos_token": "<s>", "eos_token": "</s>"} if pieces else SETTINGS
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if template := reader.get_field("tokenizer.chat_template"):
        (directory / "chat_template.jinja").write_text(template.contents())
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def make_onnx(model: Path, directory: Path, tokenizer: Tokenizer, precision: str = "fp32") -> Path:
    """Write the ONNX directory of a GGUF file; its model.onnx."""
    checkpoint = make_checkpoint(model, directory.with_name(f"{directory.name}-checkpoint"), tokenizer)
    metadata = {"name": "tiny", "license": "Apache-2.0", "base_model": "random"}
    write_onnx(read_checkpoint(checkpoint), directory, PRECISIONS[precision], metadata=metadata)
    return directory / "model.onnx"


def edit_json(path: Path, **changes: Any) -> None:
    """Change a JSON file's keys; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
