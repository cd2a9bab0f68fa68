"""LoRA adapters as peft saves them, merged into their base by peft."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from minigpt_edge.models.checkpoint import stored_parameters
from minigpt_edge.models.compare import TOLERANCE, distance, in_short, quiet, token_ids
from minigpt_edge.models.recognise import ADAPTER_CONFIG
from minigpt_edge.stages import memory
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.weights import WEIGHTS, Weights
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, read_json, understanding, write_json
from minigpt_edge_runtime.formats.tokenizer_files import (
    CHAT_TEMPLATE,
    CHECKPOINT_TOKENIZER_FILES,
    GENERATION_CONFIG,
    MORE_CHAT_TEMPLATES,
    TOKENIZER,
)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, *CHECKPOINT_TOKENIZER_FILES, "README.md")
_TABLES = re.compile(r"\.lora_embedding_A|\.lm_head\.lora_A")  # adapters beside the embedding or the head
_MERGE = "merge it with peft (merge_and_unload, then save_pretrained), and give the merged model"


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds an adapter and no weights of a model."""
    weights = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in weights)


def read_adapter(folder: Path) -> dict[str, Any]:
    """The settings of an adapter that can be merged.

    Raises:
        EdgeError: its files are missing, damaged or pickled, or it is of another kind than LoRA.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise EdgeError(
            f"{folder} is no adapter: it has no {ADAPTER_CONFIG}", "give the directory that peft saved"
        )
    settings = read_json(path)
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise EdgeError(f"{folder} is an adapter of the kind {kind}; LoRA alone is merged here", _MERGE)
    # peft would import the module that the first names, and the second makes a model with more blocks.
    for name in ("megatron_config", "layer_replication"):
        if settings.get(name):
            raise EdgeError(f"{path} asks for {name}, which is not merged here", _MERGE)
    if (folder / ADAPTER_WEIGHTS).is_file():
        return settings
    if (folder / "adapter_model.bin").is_file():
        raise EdgeError(
            f"{folder} has its adapter as pickle (adapter_model.bin), which can run code when read",
            "save it again with a newer peft, where you trust it",
        )
    raise EdgeError(
        f"{folder} has an {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS}", "copy the file that belongs to it"
    )


def merge_adapter(folder: Path, base: Path, target: Path) -> None:
    """Write the base with the adapter merged into it, as a Hugging Face directory of float32 weights.

    Tokenizer and chat template that lie beside the adapter take the place of the base's.

    Args:
        folder: the adapter.
        base: a converted checkpoint.
        target: an empty folder.

    Raises:
        EdgeError: the adapter does not belong to the base, or can't be merged exactly.
    """
    from safetensors.torch import save_file

    need_space(target, 2 * 4 * stored_parameters(base), "the merged model")
    settings, config = read_adapter(folder), read_json(base / "config.json")
    if config.get("per_layer_config"):
        raise EdgeError(
            f"{folder}: its base has blocks of different sizes, which peft can't load",
            "merge into a stock model",
        )
    with quiet():
        merged = _merged(folder, settings, base)
    config["vocab_size"] = merged.get_input_embeddings().weight.shape[0]
    state, owners = merged.state_dict(), dict[int, str]()  # a tied head is the embedding, and is stored once
    for name, tensor in state.items():
        owners.setdefault(tensor.data_ptr(), name)
    stored = {name: state[name].detach().contiguous() for name in owners.values()}
    save_file(stored, target / WEIGHTS, {"format": "pt"})
    own = (folder / TOKENIZER).is_file()
    for name in CHECKPOINT_TOKENIZER_FILES:
        beside = name != GENERATION_CONFIG and (own or (name == CHAT_TEMPLATE and (folder / name).is_file()))
        origin = folder if beside else base
        if (origin / name).is_file():
            shutil.copyfile(origin / name, target / name)
    if own:
        config.pop("minigpt_edge", None)
    if (templates := (folder if own else base) / MORE_CHAT_TEMPLATES).is_dir():
        shutil.copytree(templates, target / MORE_CHAT_TEMPLATES)
    write_json(target / "config.json", config)


def _merged(folder: Path, settings: dict[str, Any], base: Path) -> Any:
    """The model after peft's merge_and_unload; it computes what the adapter beside the base does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stored = Weights([folder / ADAPTER_WEIGHTS])
    needed = memory.PROCESS + int(1.3 * 4 * stored_parameters(base))
    memory.check(needed, None, "merging the adapter", "merge it on a larger machine")
    with understanding(folder / ADAPTER_CONFIG):
        ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    widest = max((max(shape, default=0) for shape in stored.shapes.values()), default=0)
    if not all(isinstance(rank, int) and 0 < rank <= widest for rank in ranks):
        raise EdgeError(
            f"{folder / ADAPTER_CONFIG}: no weights of rank {max(ranks, key=str)} are there", _MERGE
        )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(base), local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
        _resize(model, stored, folder)
        adapted: Any = PeftModel.from_pretrained(model, str(folder)).eval()
        _check_loaded(adapted, stored, folder)
        head = getattr(head := model.get_output_embeddings(), "base_layer", head)
        if isinstance(head, torch.nn.Linear) and any(_TABLES.search(name) for name in stored.shapes):
            # Merged into the embedding, it would change a tied head, or the other way round.
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        ids = token_ids(model.config.vocab_size)
        with torch.no_grad():
            before = adapted(input_ids=ids).logits
            merged = adapted.merge_and_unload(safe_merge=True).eval()
            after = merged(input_ids=ids).logits
    except EdgeError:
        raise
    except Exception as error:  # peft, transformers and torch raise many kinds
        raise EdgeError(
            f"{folder} can't be merged into its base ({in_short(error)})",
            "give the base that it was trained on: --model BASE --adapter DIRECTORY",
        ) from error
    if not distance(after, before) <= TOLERANCE:
        raise EdgeError(f"{folder} computes something else once peft has merged it", _MERGE)
    return merged


def _resize(model: Any, stored: Weights, folder: Path) -> None:
    """Give embedding and head the rows that the adapter stores for them, as training gave it tokens.

    Raises:
        EdgeError: new rows of one of the two are not stored.
    """
    names = architecture_of(model.config.model_type).names
    tables = {"embedding": (names["embedding"],), "head": (names["head"], "lm_head")}
    rows: dict[str, int] = {}
    for part, modules in tables.items():
        for name, shape in stored.shapes.items():
            if any(name.endswith((f".{m}.weight", f".{m}.base_layer.weight")) for m in modules):
                rows[part] = shape[0]
    before = model.get_input_embeddings().weight.shape[0]
    if not rows or set(rows.values()) == {before}:
        return
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if len(set(rows.values())) > 1 or not (tied or rows.keys() == tables.keys()):
        raise EdgeError(
            f"{folder} has {max(rows.values()):,} rows for its {' and '.join(rows)}, the base {before:,} for "
            "embedding and head, so rows would be missing",
            "save the adapter with its embedding and head (save_embedding_layers=True)",
        )
    model.resize_token_embeddings(next(iter(rows.values())), mean_resizing=False)


def _check_loaded(adapted: Any, stored: Weights, folder: Path) -> None:
    """EdgeError unless peft has taken every tensor of the adapter's file, and found all that it looked for.

    peft leaves out what it does not find, with a warning.
    """
    import numpy as np
    from peft import get_peft_model_state_dict

    tables = any(".lora_" not in name for name in stored.shapes)
    found = get_peft_model_state_dict(adapted, save_embedding_layers=tables)
    wrong = sorted(found.keys() ^ stored.shapes.keys())
    wrong = [name for name in wrong if name in stored.shapes or ".lora_" in name]
    wrong += [
        n
        for n in stored.shapes
        if n in found and not np.array_equal(stored.load(n), found[n].float().numpy())
    ]
    if wrong:
        raise EdgeError(
            f"{folder / ADAPTER_WEIGHTS} does not fit its {ADAPTER_CONFIG} and the base: {wrong[0]} and "
            f"{len(wrong) - 1} others are stored or wanted, but not both",
            "give the base that it was trained on: --model BASE --adapter DIRECTORY",
        )
