"""A GGUF file of LLaMA or Qwen as a Hugging Face directory with float32 weights. No torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.checkpoint import special_ids, write_converted
from minigpt_edge.models.from_gguf_tokenizer import WholeTokens, build_sentencepiece, build_tokenizer
from minigpt_edge.models.gguf_kinds import MODEL_TYPES, check_kind
from minigpt_edge.models.rope_factors import rope_parameters
from minigpt_edge.models.safetensors_stream import Tensor
from minigpt_edge.models.sizes import block_sizes, repeats, write_sizes
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import ATTENTION
from minigpt_edge_export.gguf.pretokenizers import by_name
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import understanding, write_json, write_text
from minigpt_edge_runtime.formats.gguf_header import GgufHeader, read_header
from minigpt_edge_runtime.formats.gguf_names import BLOCK, EMBEDDING, HEAD, PARTS, ROPE_FACTORS
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

    Load = Callable[[], np.ndarray]

_ENDS = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")  # llama.cpp ends at all of them
_CONTROL, _USER_DEFINED = 3, 4  # These are values of gguf.TokenType.
_PIECES = {"unknown": 0, "bos": 1, "eos": 2}  # llama.cpp's ids in a SentencePiece vocabulary that names none
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_PARTS = {name: part for part, name in PARTS.items()}


def convert_gguf(path: Path, target: Path) -> dict[str, Any]:
    """Write config, float32 weights, tokenizer and chat template of a GGUF file into the folder `target`.

    Returns:
        {"name", "licence"} as the file states them (either may be None).

    Raises:
        EdgeError: the file is truncated or no GGUF or no whole model, its architecture, tokenizer or a type
            of its tensors is not known, or it lacks tensors or holds others than its architecture has.
    """
    from gguf import GGUFReader

    header = read_header(path)  # It checks that the file is whole.
    with understanding(path, "download or convert the file again"):
        check_kind(header, path)
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields, header, reader, path)
        write_tokenizer(fields, config, target)
        tensors = _tensors(reader, header.architecture, config, path)
        config["tie_word_embeddings"] = all(tensor.name != "lm_head.weight" for tensor in tensors)
        write_converted(target, config, tensors, path)
    return {"name": fields.get("general.name"), "licence": fields.get("general.license")}


def _short(value: float) -> float:
    """A float32 as the shortest decimal that means it (1e-05, not 9.999999747378752e-06)."""
    import numpy as np

    return float(str(np.float32(value)))


def _config(fields: dict[str, Any], header: GgufHeader, reader: GGUFReader, path: Path) -> dict[str, Any]:
    """`config.json` from the architecture's metadata, and from which tensors there are."""
    architecture, names = header.architecture, {tensor.name for tensor in header.tensors}

    def get(key: str, default: Any = None) -> Any:
        value = fields.get(f"{architecture}.{key}", default)
        if value is None:
            raise EdgeError(
                f"{path} lacks {architecture}.{key} in its metadata", "download or convert the file again"
            )
        return value

    blocks = _blocks(get, len(names), path)
    hidden, heads = get("embedding_length"), blocks[0]["num_attention_heads"]
    head_dim = get("attention.key_length", get("rope.dimension_count", hidden // heads))
    unread = {
        "experts (a mixture of experts)": get("expert_count", 0),
        "no causal attention (an encoder)": not get("attention.causal", True),
        "values of another length than keys": get("attention.value_length", head_dim) != head_dim,
        "partly rotated heads": get("rope.dimension_count", head_dim) != head_dim,
    }
    if found := [what for what, there in unread.items() if there]:
        raise EdgeError(
            f"{path} has {found[0]}, which is not read from GGUF",
            "give the model as a Hugging Face directory",
        )
    model_type = MODEL_TYPES[architecture]
    attention, mlp = (f"{BLOCK}.0.{PARTS[part]}.bias" in names for part in ("attention_output", "down"))
    if model_type == "llama" and not attention and f"{BLOCK}.0.{PARTS['query']}.bias" in names:
        model_type = "qwen2"  # Its block is LLaMA's with biases of query, key and value alone.
    config = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "attention_bias": attention,
        "attention_dropout": 0.0,
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "dtype": "float32",
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "max_position_embeddings": get("context_length"),
        "minigpt_edge": {"tokenizer_pre": fields.get("tokenizer.ggml.pre")},
        "mlp_bias": mlp,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": _short(get("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(get, reader, path),
        "use_cache": True,
        "vocab_size": len(fields.get("tokenizer.ggml.tokens") or ()),
        **blocks[0],
    }
    write_sizes(config, blocks)
    return config


def _blocks(get: Callable[..., Any], tensors: int, path: Path) -> list[dict[str, int]]:
    """The sizes of every block: numbers for all, or lists with one for each."""
    count = int(get("block_count"))
    if not 0 < count <= tensors:
        raise ValueError(f"{count} blocks of {tensors} tensors")
    given = {
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv", get("attention.head_count")),
    }
    lists = {key: value if isinstance(value, list) else [value] * count for key, value in given.items()}
    if any(len(value) != count for value in lists.values()):
        raise ValueError(f"sizes of {[len(value) for value in lists.values()]} blocks, not of {count}")
    blocks = [dict(zip(lists, map(int, sizes), strict=True)) for sizes in zip(*lists.values(), strict=True)]
    if any(min(block.values()) < 1 for block in blocks):
        raise EdgeError(f"{path} has blocks without attention or without an MLP", "use another model")
    shares = {block["num_attention_heads"] / block["num_key_value_heads"] for block in blocks}
    if len(shares) > 1 or not shares.pop().is_integer():
        raise EdgeError(
            f"{path} has blocks in which other numbers of heads share a key/value head than elsewhere",
            "use another model",
        )
    return blocks


def _rope(get: Callable[..., Any], reader: GGUFReader, path: Path) -> dict[str, Any]:
    """`rope_parameters`, by the file's keys or, where it has them, by its factors of the frequencies."""
    theta, kind = _short(get("rope.freq_base", 10000.0)), get("rope.scaling.type", "linear")
    factor = _short(get("rope.scaling.factor", get("rope.scale_linear", 1.0))) or 1.0
    stored = next((tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    if kind not in ("none", "linear") or (stored is not None and factor != 1.0 and kind == "linear"):
        raise EdgeError(
            f"{path} has rotary positions scaled as {kind!r}"
            + (f" and by {ROPE_FACTORS}" if stored is not None else "")
            + ", which is not read from GGUF",
            "known are linear scaling and llama3's; use another model",
        )
    if stored is None:
        scaled = kind == "linear" and factor != 1.0
        return {"rope_theta": theta, "rope_type": "linear" if scaled else "default"} | (
            {"factor": factor} if scaled else {}
        )
    found = rope_parameters(_dequantized(stored)(), theta)
    if found is None:
        raise EdgeError(
            f"{path}: {ROPE_FACTORS} is no scaling of llama3's kind", "use another model, or its plain form"
        )
    return found


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
            f"the tokenizer is neither a byte-level nor a SentencePiece BPE ({known})"
            if fields.get("tokenizer.ggml.tokens")
            else "the file has no vocabulary",
            "use a model with another tokenizer, such as SmolLM2 or Llama 3",
        )
    pieces, named = kind == "llama", fields.get("tokenizer.ggml.pre")
    if not pieces and named in (None, "default"):
        raise EdgeError(
            "the file does not name its pre-tokenizer (tokenizer.ggml.pre), so it is not known how text is "
            "split: it is from before May 2024, or its converter did not know the tokenizer",
            "get it made by a current llama.cpp, or give the model's Hugging Face directory",
        )
    pre = None if pieces else by_name(named)
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    names = _special_names(fields, tokens)
    adds_bos = fields.get("tokenizer.ggml.add_bos_token", pre is None or pre.adds_bos)
    adds_eos = fields.get("tokenizer.ggml.add_eos_token", False)
    whole = WholeTokens(
        [text for text, type_ in zip(tokens, types, strict=True) if type_ == _CONTROL],
        [text for text, type_ in zip(tokens, types, strict=True) if type_ == _USER_DEFINED],
        names["bos_token"] if adds_bos else None,
        names["eos_token"] if adds_eos else None,
    )
    if pre is None:
        scores, prefix = fields.get("tokenizer.ggml.scores") or [], "tokenizer.ggml.add_space_prefix"
        tokenizer = build_sentencepiece(tokens, scores, whole, names["unk_token"], fields.get(prefix, True))
        config["minigpt_edge"]["tokenizer_pre"] = "default"
        for role in ("bos", "eos"):
            config[f"{role}_token_id"] = fields.get(f"tokenizer.ggml.{role}_token_id", _PIECES[role])
    else:
        merges = fields.get("tokenizer.ggml.merges") or []
        tokenizer = build_tokenizer(tokens, merges, whole, pre)
    write_text(target / TOKENIZER, tokenizer.to_str())
    settings = {
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: text for name, text in names.items() if text is not None},
    }
    write_chat_templates(target, settings, gguf_chat_templates(fields))
    write_json(target / TOKENIZER_CONFIG, settings)
    ends = _ends(fields, config["eos_token_id"])
    several = {"eos_token_id": ends} if len(ends) > 1 else {}
    write_json(target / GENERATION_CONFIG, special_ids(config) | several)


def _special_names(fields: dict[str, Any], tokens: list[str]) -> dict[str, str | None]:
    """The special tokens by transformers' names; llama.cpp knows some of a SentencePiece vocabulary."""
    defaults = _PIECES if fields["tokenizer.ggml.model"] == "llama" else {}

    def token(role: str) -> str | None:
        index = fields.get(f"tokenizer.ggml.{role}_token_id", defaults.get(role))
        return tokens[index] if index is not None and index < len(tokens) else None

    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {name: token(role) for name, role in roles.items()}


def _ends(fields: dict[str, Any], eos: int | None) -> list[int]:
    """The ids of all tokens that the file says end an answer: of a text, a turn, a message."""
    stated = [eos, *(fields.get("tokenizer.ggml.eos_token_ids") or [])]
    stated += [fields.get(f"tokenizer.ggml.{role}_token_id") for role in _ENDS]
    count = len(fields["tokenizer.ggml.tokens"])
    return [index for index in dict.fromkeys(stated) if index is not None and 0 <= index < count]


def _tensors(reader: GGUFReader, layout: str, config: dict[str, Any], path: Path) -> list[Tensor]:
    """All weights under their Hugging Face names; a head that is the embedding once more is left out."""
    architecture = architecture_of(config["model_type"])
    paired = {"llama", "deci"}  # llama.cpp rotates neighbours there
    groups, shared = [sizes[1] for sizes in block_sizes(config)], repeats(config)
    found, foreign = [], []
    for tensor in reader.tensors:
        *block, name, kind = tensor.name.split(".")
        part = _PARTS.get(name, "")
        if tensor.name == ROPE_FACTORS or _is_twin(tensor, reader):
            continue
        joined = part == "joined" and layout == "openelm"
        if not (joined or part in architecture.names) or block[:1] not in ([], [BLOCK]) or len(block) > 2:
            foreign.append(tensor.name)
            continue
        prefix = architecture.names["block"].format(index=block[1]) if block else ""
        shape, load = tuple(int(size) for size in reversed(tensor.shape)), _dequantized(tensor)
        if joined:
            kv = groups[int(block[1])]
            sizes = [heads * config["head_dim"] for heads in (kv * shared, kv, kv)]
            for index, third in enumerate(ATTENTION[:3]):
                rows = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
                name = f"{prefix}{architecture.names[third]}.{kind}"
                found.append(Tensor(name, (sizes[index], *shape[1:]), _rows(load, rows)))
            continue
        if layout in paired and part in ("query", "key"):
            load = _unpaired(load, groups[int(block[1])] * (shared if part == "query" else 1))
        found.append(Tensor(f"{prefix}{architecture.names[part]}.{kind}", shape, load))
    if foreign:
        raise EdgeError(
            f"{path} is not a plain {config['model_type']} model: it holds {foreign[0]} ({len(foreign)} "
            "foreign tensors)",
            "give the model as a Hugging Face directory",
        )
    return found


def _is_twin(tensor: Any, reader: GGUFReader) -> bool:
    """Whether a tensor is the head and the same as the embedding, as some converters store tied ones."""
    if tensor.name != HEAD:
        return False
    other = next((t for t in reader.tensors if t.name == EMBEDDING), None)
    return (
        other is not None
        and tensor.tensor_type == other.tensor_type
        and bool((tensor.data == other.data).all())
    )


def _dequantized(tensor: Any) -> Load:
    """Loads a GGUF tensor as float32."""

    def load() -> np.ndarray:
        from gguf import quants

        return quants.dequantize(tensor.data, tensor.tensor_type)

    return load


def _rows(load: Load, rows: slice) -> Load:
    """Loads some rows of a tensor."""
    return lambda: load()[rows]


def _unpaired(load: Load, heads: int) -> Load:
    """Loads a tensor and undoes llama.cpp's order of the rotary halves."""

    def halves() -> np.ndarray:
        weights = load()
        rows = weights.reshape(heads, weights.shape[0] // heads // 2, 2, *weights.shape[1:])
        return rows.swapaxes(1, 2).reshape(weights.shape)

    return halves
