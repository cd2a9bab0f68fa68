"""Tiny real models, in Hugging Face form and as GGUF, and texts, made by the tests that need them."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, WIDTH, HEADS, KV_HEADS, BLOCKS = 64, 96, 4, 2, 2
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
SCRIPTS = [
    "The licensor grants, in 1984 and 20 other years, don't WE'LL see; x²³ ½ cups",
    "日本語のテキスト 123４５６です",
    "Привет, мир! 2024 год",
    "مرحبا بالعالم ١٢٣",
    "नमस्ते दुनिया १२३",
    "สวัสดีชาวโลก ๑๒๓",
    "שלום עולם, 5 ימים",
    "Γειά σου Κόσμε 42",
    "안녕하세요 세계 12",
    "😀👩‍👩‍👧 🇩🇪  tabs\t\tand\n\n\nlines \r\n end   ",
    "a\u0301 combining\u00a0nbsp\u3000wide\u2028line",
]
_WORDS = ["the", "licence", "grants", "rights", "to", "any", "person", "who", "shall", "copy", "or", "modify"]


def sentences(count: int, seed: int) -> str:
    """Lines of random legal-sounding words; every seed gives another text."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        words = [rng.choice(_WORDS) + rng.choice(["", "s", "ed", str(rng.randrange(99))]) for _ in range(9)]
        lines.append(" ".join(words))
    return "\n".join(lines)


def tiny_tokenizer(*, digits: bool = True) -> Tokenizer:
    """A trained byte-level BPE with SmolLM's (or GPT-2's) way of splitting text."""
    return Tokenizer.from_str(_trained(digits))


@cache
def _trained(digits: bool) -> str:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[AddedToken(text, special=True) for text in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Trained on whole numbers: a tokenizer that forgets to split digits then gives other tokens.
    tokenizer.train_from_iterator([sentences(300, 1), *SCRIPTS * 5, "1984 2024 123 " * 50], trainer)
    if digits:
        single = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([single, byte_level])
    return str(tokenizer.to_str())


def tiny_model_dir(folder: Path, *, dtype: str = "float32", digits: bool = True, tied: bool = True) -> Path:
    """A random LLaMA checkpoint saved by transformers, as a stranger would have it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(digits=digits)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=BLOCKS,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": SPECIALS[1],
        "eos_token": {"__type": "AddedToken", "content": SPECIALS[2], "special": True},
        "tokenizer_class": "GPT2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


def tiny_adapter(base: Path, folder: Path, rows: int | None = None, **settings: Any) -> Path:
    """A LoRA adapter with random weights, saved by peft; with `rows` for an embedding of so many."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 32, **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad or (rows and "embed_tokens" in name):
                weight.add_(torch.randn_like(weight), alpha=0.1)
    adapted.save_pretrained(folder)
    return folder


def tiny_gguf(path: Path, *, pre: str | None = "smollm", arch: str = "llama", model: str = "gpt2") -> Path:
    """A random LLaMA model as GGUF, half its tensors quantized, whose pre-tokenizer is `pre`."""
    tokenizer = json.loads(tiny_tokenizer().to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Tiny")
    writer.add_string("general.license", "mit")
    writer.add_context_length(256)
    writer.add_block_count(BLOCKS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    _add_weights(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    rng = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (vocabulary, HIDDEN), "output_norm": (HIDDEN,)}
    for i in range(BLOCKS):
        block = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (kv, HIDDEN),
        }
        block |= {"attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_down": (HIDDEN, WIDTH)}
        block |= {"ffn_gate": (WIDTH, HIDDEN), "ffn_up": (WIDTH, HIDDEN)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in block.items()}
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.1, shape).astype(np.float32)
        if name.endswith(("attn_q", "ffn_down", "attn_k")):
            kind = gguf.GGMLQuantizationType.Q8_0 if "attn" in name else gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", weights)


def changed(model_dir: Path, target: Path, file: str, change: dict[str, object]) -> Path:
    """A copy of a model directory whose JSON file of that name has other entries."""
    shutil.copytree(model_dir, target)
    (target / file).write_text(json.dumps({**json.loads((target / file).read_text()), **change}))
    return target
