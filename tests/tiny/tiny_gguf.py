"""A tiny LLaMA model file with a real byte-level BPE vocabulary, made with the gguf library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, FFN, HEADS, KV_HEADS, BLOCKS, CONTEXT = 64, 96, 4, 2, 2, 1024
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS_TEMPLATE = (  # as Qwen's
    "{% if tools %}{{ '<|im_start|>system\nTools:' }}{% for tool in tools %}{{ '\n' + tool | tojson }}"
    "{% endfor %}{{ '\n<tool_call>\n{}\n</tool_call><|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>\n' + call.function | tojson + '\n' }}"
    "{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to deal "
    "in the software without restriction, including without limitation the rights to use and distribute. "
    "The above copyright notice shall be included in all copies of the software. "
)


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE with llama.cpp's "smollm" split, trained on TEXT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        show_progress=False,
        special_tokens=[AddedToken(text, special=True) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def make_gguf(
    path: Path,
    tokenizer: Tokenizer,
    *,
    chain: Mapping[int, int] | None = None,
    architecture: str = "llama",
    with_weights: bool = True,
    chat_template: str | None = CHAT_TEMPLATE,
    split_count: int = 0,
    context: int = CONTEXT,
) -> Path:
    """Write a model of random weights; with `chain` its likeliest next token after a key is the value."""
    rng = np.random.default_rng(7)
    size = tokenizer.get_vocab_size()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    if split_count:
        writer.add_uint16("split.count", split_count)
    pieces = json.loads(tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
    for token in tokenizer.get_added_tokens_decoder().values():
        kinds[token.content] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_token_types([*kinds.values()])
    writer.add_token_merges([" ".join(merge) for merge in pieces["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    def matrix(rows: int, columns: int, scale: float = 0.1) -> np.ndarray:
        return (scale * rng.standard_normal((rows, columns))).astype(np.float16)

    if with_weights:
        quiet = 0.0 if chain is not None else 0.1
        embedding = rng.standard_normal((size, HIDDEN)).astype(np.float16)
        output = matrix(size, HIDDEN)
        for token, following in (chain or {}).items():
            output[following] = embedding[token]
        writer.add_tensor("token_embd.weight", embedding)
        writer.add_tensor("output.weight", output)
        writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
        kv = HIDDEN // HEADS * KV_HEADS
        for i in range(BLOCKS):
            shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
            shapes |= {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
            for name, (rows, columns) in shapes.items():
                writer.add_tensor(f"blk.{i}.{name}.weight", matrix(rows, columns))
            writer.add_tensor(f"blk.{i}.attn_output.weight", matrix(HIDDEN, HIDDEN, quiet))
            writer.add_tensor(f"blk.{i}.ffn_down.weight", matrix(HIDDEN, FFN, quiet))
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def chain_model(path: Path, tokenizer: Tokenizer, ids: list[int], **options: Any) -> Path:
    """A model that, after the first of `ids`, says the others in order (they must differ from each other)."""
    assert len(set(ids)) == len(ids)
    return make_gguf(path, tokenizer, chain=dict(zip(ids, ids[1:], strict=False)), **options)


def texts_content(base_tokens: int = 20) -> dict[str, Any]:
    """The content of a texts.json with three windows."""
    windows = [TEXT[:150], "Ça coûte 42 €, 漢字 🙂", TEXT[100:280]]
    return {
        "document_start": "<|endoftext|>",
        "split": "test",
        "windows": [{"text": t, "bytes": len(t.encode()), "base_tokens": base_tokens} for t in windows],
    }
