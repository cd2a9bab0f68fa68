"""Base models whose tokenizers have the shapes that people ship, each with a tiny LLaMA around it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tiny_sentencepiece import SPACE, sentencepiece_json
from vocabulary_helpers import TRAINING

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'system' %}"
    "{{ raise_exception('no system message') }}{% else %}{{ m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' }}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{{ 'assistant:' }}"


@dataclass(frozen=True)
class Shape:
    """A base model's tokenizer and the files that name its tokens.

    `same_prompts` and `same_texts`: whether our checkpoint makes the ids that transformers makes of the base,
    in rendered prompts and in plain texts that begin with a letter.
    """

    tokenizer: dict[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None
    template: str | None = None
    more_rows: int = 0
    same_prompts: bool = True
    same_texts: bool = True


def write_base(folder: Path, shape: Shape) -> Path:
    """The shape as a Hugging Face directory with a LLaMA of one block."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    size = max(Tokenizer.from_str(json.dumps(shape.tokenizer)).get_vocab().values()) + 1 + shape.more_rows
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 128, "tie_word_embeddings": True, "vocab_size": size, "bos_token_id": None,
        "eos_token_id": None, **shape.config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    if shape.generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(shape.generation))
    (folder / "tokenizer.json").write_text(json.dumps(shape.tokenizer, ensure_ascii=False), encoding="utf-8")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", **shape.settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if shape.template:
        (folder / "chat_template.jinja").write_text(shape.template)
    chance, block = np.random.default_rng(0), "model.layers.0."
    matrices = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    matrices += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    weights = {f"{block}{name}.weight": chance.standard_normal((32, 32), np.float32) for name in matrices}
    for norm in (f"{block}input_layernorm", f"{block}post_attention_layernorm", "model.norm"):
        weights[f"{norm}.weight"] = np.ones(32, np.float32)
    weights["model.embed_tokens.weight"] = chance.standard_normal((size, 32), np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@lru_cache
def _byte_level(pre: str, *specials: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from minigpt_edge_export.gguf.pretokenizers import by_name, to_hugging_face

    form = by_name(pre)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    data = json.loads(tokenizer.to_str())
    data["pre_tokenizer"], data["model"]["ignore_merges"] = to_hugging_face(form), form.ignore_merges
    return json.dumps(data)


def byte_level(pre: str, *specials: str, **changes: Any) -> dict[str, Any]:
    """A byte-level BPE that splits text as llama.cpp's `pre` does; special tokens have the first ids."""
    return {**json.loads(_byte_level(pre, *specials)), **changes}


@lru_cache
def _pieces() -> str:
    return json.dumps(sentencepiece_json(TRAINING, 560))


def pieces(spaces: str = "prepend", **changes: Any) -> dict[str, Any]:
    """LLaMA 2's kind: with the Prepend normalizer, or Metaspace "first", "always", "never", or with both."""
    data = json.loads(_pieces())
    scheme = spaces.removeprefix("prepend+")
    if scheme != "prepend":
        data["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False
        }  # fmt: skip
        data["normalizer"] = data["normalizer"] if spaces.startswith("prepend+") else None
    return {**data, **changes}


def around(data: dict[str, Any], before: str = "", after: str = "") -> dict[str, Any]:
    """The tokenizer with tokens that its post-processor puts around texts."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(json.dumps(data))
    names = [*before.split(), *after.split()]
    template = processors.TemplateProcessing(
        single=" ".join(filter(None, (before, "$A", after))),
        special_tokens=[(text, tokenizer.token_to_id(text)) for text in names],
    )
    tokenizer.post_processor = template
    return {**data, "post_processor": json.loads(tokenizer.to_str())["post_processor"]}


def added(data: dict[str, Any], *texts: str, gap: int = 0, **flags: Any) -> dict[str, Any]:
    """The tokenizer with more added tokens, after a hole of `gap` ids where `tokenizers` keeps one."""
    data = copy.deepcopy(data)
    vocabulary = data["model"]["vocab"]
    known = {token["content"] for token in data["added_tokens"]}
    first = max([*vocabulary.values(), *(token["id"] for token in data["added_tokens"])]) + 1 + gap
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for at, text in enumerate(texts):
        assert text not in known
        if gap:  # the library numbers added tokens densely, those of the model as they are
            vocabulary[text] = first + at
        data["added_tokens"].append({"id": first + at, "content": text, **plain, **flags})
    return data


def shapes() -> dict[str, Shape]:
    """Every shape by name."""
    return _families() | _named_tokens() | _llama_2()


def _families() -> dict[str, Shape]:
    chat = byte_level("smollm", END, START, STOP)
    names = {"bos_token": END, "eos_token": STOP}
    llama3 = byte_level("llama-bpe", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")
    runs = [" " * count for count in range(2, 25)]
    neox = added(byte_level("olmo", END, "<|padding|>"), *reversed(runs), normalized=True)
    qwen = byte_level("qwen2", END, START, STOP, normalizer={"type": "NFC"})
    fill = [f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")]
    fill += ["<|repo_name|>", "<|file_sep|>"]
    return {
        "gpt2": Shape(
            byte_level("gpt-2", END), {"tokenizer_class": "GPT2Tokenizer"},
            {"bos_token_id": 0, "eos_token_id": 0},
        ),
        "ordinary tokens as bos and eos": Shape(
            {**byte_level("gpt-2"), "added_tokens": []}, {"bos_token": "a", "eos_token": "b"}
        ),
        "opt": Shape(
            around(byte_level("gpt-2", "<pad>", "</s>", "<unk>"), "</s>"),
            {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
            {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
        ),
        "codegen": Shape(
            added(byte_level("gpt-2", END), *runs[:5], "\t\t", "\t\t\t", normalized=True),
            {"bos_token": END, "eos_token": END, "tokenizer_class": "CodeGenTokenizer"}, more_rows=7,
        ),
        "neox": Shape(neox, {"bos_token": END, "eos_token": END, "tokenizer_class": "GPTNeoXTokenizer"}),
        "smollm": Shape(chat, names, {"bos_token_id": 1, "eos_token_id": 2}, template=CHATML),
        "smollm with a system message": Shape(
            chat, names, template="{% if messages[0]['role'] != 'system' %}"
            "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML,
        ),
        "starcoder": Shape(byte_level("starcoder", END, *fill, "<reponame>", "<fim_pad>"),
            {"bos_token": END, "eos_token": END}),
        "qwen2": Shape(
            added(qwen, *fill, "<tool_call>", "</tool_call>"),
            {"eos_token": STOP, "pad_token": END, "bos_token": None, "tokenizer_class": "Qwen2Tokenizer"},
            {"bos_token_id": 0, "eos_token_id": 2}, {"eos_token_id": [2, 0], "pad_token_id": 0},
            "{{ bos_token }}" + CHATML, 13,
        ),
        "qwen2, base": Shape(
            {**qwen, "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]}},
            {"eos_token": END, "pad_token": END}, {"eos_token_id": 0},
        ),
        "llama 3": Shape(
            around(llama3, "<|begin_of_text|>"),
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            {"bos_token_id": 0, "eos_token_id": [1, 2, 3]}, {"eos_token_id": [1, 2, 3]},
            "{{ bos_token }}{% for m in messages %}{{ m['role'] + '\n\n' + m['content'] + '<|eot_id|>' }}"
            "{% endfor %}",
        ),
        "stablelm": Shape(
            added(byte_level("stablelm2", END, START, STOP), "<|reg_extra|>", "<|user|>", special=True),
            {"eos_token": END, "pad_token": END}, {"eos_token_id": 0}, template=CHATML,
        ),
        "gemma's names": Shape(
            byte_level("gpt-2", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<pad>"),
            {"bos_token": "<bos>", "eos_token": "<eos>"}, {}, {"eos_token_id": [1, 3]},
            "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] }}"
            "{{ '<end_of_turn>\n' }}{% endfor %}",
        ),
        "harmony": Shape(
            byte_level("gpt-2", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"),
            {"eos_token": "<|return|>", "bos_token": "<|start|>"}, {}, {"eos_token_id": [3, 4]},
        ),
        "dbrx": Shape(byte_level("dbrx", END, START, STOP), names, template=CHATML),
    }  # fmt: skip


def _named_tokens() -> dict[str, Shape]:
    chat = byte_level("smollm", END, START, STOP)
    names = {"bos_token": END, "eos_token": STOP}
    return {
        "no bos": Shape(chat, {"eos_token": STOP, "bos_token": None}, template="{{ bos_token }}" + CHATML),
        "no eos": Shape(
            chat, {"bos_token": END, "eos_token": None}, template=CHATML + "{{ eos_token }}"
        ),
        "neither, of other names": Shape(
            byte_level("gpt-2", "<start>", "<turn>"), {}, {"bos_token_id": 0}, template=PLAIN
        ),
        "bos and eos around texts": Shape(around(chat, END, STOP), names),
        "eos after texts, and a template": Shape(around(chat, "", STOP), names, template=CHATML),
        "bos before texts, not in the template": Shape(around(chat, END), names, template=CHATML),
        "add_bos_token in the settings": Shape(chat, {**names, "add_bos_token": True}, template=CHATML),
        "add_eos_token in the settings": Shape(chat, {**names, "add_eos_token": True}),
        "ends that are no special tokens": Shape(
            added(chat, "<turn>", "<over>"), names, {"eos_token_id": 2},
            {"eos_token_id": [2, 401, 50, 400]}, PLAIN,
        ),
        "six ends": Shape(
            byte_level("gpt-2", "<e0>", "<e1>", "<e2>", "<e3>", "<e4>", "<e5>"),
            {"eos_token": "<e3>"}, {"eos_token_id": [0, 1, 2, 3, 4, 5]},
        ),
        "an end of the config, not of the tokenizer": Shape(chat, {"eos_token": END}, {"eos_token_id": 1}),
        "a bos of the tokenizer, another of the config": Shape(
            byte_level("smollm", "<b>", "<c>", STOP), {"bos_token": "<b>", "eos_token": STOP},
            {"bos_token_id": 1},
        ),
        "an end by its text alone": Shape(byte_level("gpt-2", "<x>", "</s>")),
        "two pads": Shape(
            added(chat, "[PAD]", "<PAD>", special=True), {**names, "pad_token": "[PAD]"}, {"eos_token_id": 2}
        ),
        "holes and rows without tokens": Shape(added(chat, "<clause>", "<note>", gap=5), names, more_rows=3),
        "token types that llama.cpp changes": Shape(
            added(added(chat, "<|eot_id|>", "<EOT>"), "<|start|>", "<|message|>", special=True), names
        ),
        "tokens in the settings alone": Shape(
            chat, {**names, "added_tokens_decoder": {"400": {"content": "<extra>", "special": False}}},
            more_rows=4,
        ),
    }  # fmt: skip


def _llama_2() -> dict[str, Shape]:
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    im = added(pieces(), START, STOP, special=True)
    return {
        "llama 2": Shape(pieces(), {**llama, "add_prefix_space": None}, template=INST),
        "llama 2, first": Shape(pieces("first"), {**llama, "legacy": False}),
        "llama 2 of transformers 5": Shape(
            pieces("first"), {**llama, "tokenizer_class": "LlamaTokenizer", "legacy": False}, template=ZEPHYR,
            same_texts=False,
        ),
        "llama 2, always": Shape(pieces("always"), {**llama, "legacy": True}, template=INST),
        "llama 2 with ChatML, always": Shape(
            added(pieces("always"), START, STOP, special=True), {**llama, "eos_token": STOP}, template=CHATML
        ),
        "llama 2, eos after texts": Shape(around(pieces(post_processor=None), "<s>", "</s>"), llama),
        "llama 2, never": Shape(pieces("never"), llama, template=ZEPHYR),
        "llama 2, prepend and first": Shape(pieces("prepend+first"), llama),
        "llama 2 with ChatML": Shape(im, {**llama, "eos_token": STOP}, template=CHATML),
        "llama 2 with ChatML, first": Shape(
            added(pieces("first"), START, STOP, special=True), {**llama, "eos_token": STOP}, template=CHATML,
            same_texts=False,
        ),
        "llama 2 without bos before texts": Shape(pieces(post_processor=None), llama, template=INST),
        "llama 1": Shape(
            {**pieces(), "added_tokens": [{**t, "normalized": True} for t in pieces()["added_tokens"]]},
            {"tokenizer_class": "LlamaTokenizer", "legacy": True}, {"bos_token_id": 1, "eos_token_id": 2},
        ),
        "llama 2, nothing named": Shape(pieces("never", post_processor=None), {}, {"bos_token_id": 1}),
    }  # fmt: skip
