"""A GGUF file of LLaMA or Qwen as a Hugging Face directory with float32 weights. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.checkpoint import special_ids, write_converted
from minigpt_edge.models.from_gguf_tokenizer import build_sentencepiece, build_tokenizer
from minigpt_edge.models.safetensors_stream import Tensor
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.gguf.pretokenizers import by_name
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import understanding, write_json, write_text
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.gguf_names import BLOCK, PARTS
from minigpt_edge_runtime.formats.tokenizer_files import (
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    gguf_chat_templates,
    write_chat_templates,
)

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader

_CONTROL, _USER_DEFINED = 3, 4  # These are values of gguf.TokenType.
# Architecture, which is also the model_type -> transformers' class.
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_PARTS = {name: part for part, name in PARTS.items()}


def is_gguf(path: Path) -> bool:
    """Whether a file starts as a GGUF file does."""
    with open(path, "rb") as f:
        return f.read(4) == b"GGUF"


def convert_gguf(path: Path, target: Path) -> dict[str, Any]:
    """Write config, float32 weights, tokenizer and chat template of a GGUF file into the folder `target`.

    Returns:
        {"name", "licence"} as the file states them (either may be None).

    Raises:
        EdgeError: the file is truncated or no GGUF, its architecture or tokenizer is not known, or it lacks
            tensors or holds others than its architecture has.
    """
    from gguf import GGUFReader

    architecture = read_header(path).architecture  # It checks that the file is whole.
    if architecture not in _CLASSES:
        raise EdgeError(
            f"{path}: GGUF files of the architecture {architecture!r} can't be read",
            f"known: {', '.join(_CLASSES)}; or give the model's Hugging Face directory",
        )
    with understanding(path, "download or convert the file again"):
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields, architecture, path)
        write_tokenizer(fields, config, target)
        tensors = _tensors(reader, config, path)
        config["tie_word_embeddings"] = all(tensor.name != "lm_head.weight" for tensor in tensors)
        write_converted(target, config, tensors, path)
    return {"name": fields.get("general.name"), "licence": fields.get("general.license")}


def _short(value: float) -> float:
    """A float32 as the shortest decimal that means it (1e-05, not 9.999999747378752e-06)."""
    import numpy as np

    return float(str(np.float32(value)))


def _config(fields: dict[str, Any], architecture: str, path: Path) -> dict[str, Any]:
    """`config.json` from the architecture's metadata."""

    def get(key: str, default: Any = None) -> Any:
        value = fields.get(f"{architecture}.{key}", default)
        if value is None:
            raise EdgeError(
                f"{path} lacks {architecture}.{key} in its metadata", "download or convert the file again"
            )
        return value

    heads, hidden = get("attention.head_count"), get("embedding_length")
    kv_heads, width = get("attention.head_count_kv", heads), get("feed_forward_length")
    if any(isinstance(value, list) for value in (heads, kv_heads, width)):
        raise EdgeError(
            f"{path} has blocks of different sizes", "give the Hugging Face directory it was made from"
        )
    head_dim = get("attention.key_length", get("rope.dimension_count", hidden // heads))
    if (
        get("expert_count", 0)
        or get("rope.scaling.type", "none") != "none"
        or head_dim != get("rope.dimension_count", head_dim)
    ):
        raise EdgeError(
            f"{path} uses experts, RoPE scaling or partial RoPE, which are not read from GGUF",
            "give the model as a Hugging Face directory",
        )
    return {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "dtype": "float32",
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": width,
        "max_position_embeddings": get("context_length"),
        "minigpt_edge": {"tokenizer_pre": fields.get("tokenizer.ggml.pre")},
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": get("block_count"),
        "num_key_value_heads": kv_heads,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": _short(get("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_theta": _short(get("rope.freq_base", 10000.0)), "rope_type": "default"},
        "use_cache": True,
        "vocab_size": len(fields.get("tokenizer.ggml.tokens") or ()),
    }


def write_tokenizer(fields: dict[str, Any], config: dict[str, Any], target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, generation_config.json and the chat template.

    Args:
        fields: a GGUF file's metadata.
        config: of the checkpoint: its special tokens' ids and context are read, "minigpt_edge" is filled.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        known = {"bert": "WordPiece", "t5": "Unigram"}.get(str(kind), kind)
        raise EdgeError(
            f"the tokenizer is neither a byte-level nor a SentencePiece BPE ({known})",
            "use a model with another tokenizer, such as SmolLM2 or Llama 3",
        )
    pieces = kind == "llama"
    pre = None if pieces else by_name(fields.get("tokenizer.ggml.pre"))
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)

    def token(role: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{role}_token_id")
        return tokens[index] if index is not None and index < len(tokens) else None

    names = {"bos_token": token("bos"), "eos_token": token("eos"), "pad_token": token("padding")}
    names["unk_token"] = token("unknown")
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre is None or pre.adds_bos)
    special = [text for text, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL]
    whole = [text for text, type_ in zip(tokens, types, strict=True) if type_ == _USER_DEFINED]
    bos = names["bos_token"] if adds_bos else None
    if pre is None:
        scores = fields.get("tokenizer.ggml.scores") or []
        tokenizer = build_sentencepiece(tokens, scores, special, whole, names["unk_token"], bos)
        config["minigpt_edge"]["tokenizer_pre"] = "default"
    else:
        merges = fields.get("tokenizer.ggml.merges") or []
        tokenizer = build_tokenizer(tokens, merges, special, whole, pre, bos)
    write_text(target / TOKENIZER, tokenizer.to_str())
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: text for name, text in names.items() if text is not None},
    }
    write_chat_templates(target, settings, gguf_chat_templates(fields))
    write_json(target / TOKENIZER_CONFIG, settings)
    write_json(target / GENERATION_CONFIG, special_ids(config))


def _tensors(reader: GGUFReader, config: dict[str, Any], path: Path) -> list[Tensor]:
    """All weights under their Hugging Face names."""
    architecture = architecture_of(config["model_type"])
    names, heads = architecture.names, dict[str, int]()
    if architecture.gguf[0].paired:
        heads = {"query": config["num_attention_heads"], "key": config["num_key_value_heads"]}
    found, foreign = [], []
    for tensor in reader.tensors:
        *block, name, kind = tensor.name.split(".")
        part = _PARTS.get(name, "")
        if part not in names or block[:1] not in ([], [BLOCK]) or len(block) > 2:
            foreign.append(tensor.name)
            continue
        source = f"{names[part]}.{kind}"
        if block:
            source = names["block"].format(index=block[1]) + source
        shape = tuple(int(size) for size in reversed(tensor.shape))
        found.append(Tensor(source, shape, _dequantized(tensor, heads.get(part))))
    if foreign:
        raise EdgeError(
            f"{path} is not a plain {config['model_type']} model: it holds {foreign[0]} ({len(foreign)} "
            "foreign tensors)",
            "give the model as a Hugging Face directory",
        )
    return found


def _dequantized(tensor: Any, heads: int | None) -> Callable[[], np.ndarray]:
    """Loads a GGUF tensor as float32; with `heads`, llama.cpp's order of the rotary halves is undone."""

    def load() -> np.ndarray:
        from gguf import quants

        try:
            weights = quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise EdgeError(
                f"{tensor.name}: {kind} can't be dequantized", "use another quantization"
            ) from error
        if heads is None:
            return weights
        rows = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
        return rows.swapaxes(1, 2).reshape(weights.shape)

    return load
