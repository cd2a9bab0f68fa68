"""Checkpoint directories: Hugging Face format, blocks of unequal sizes under `per_layer_config`.

Equal blocks load with stock `AutoModelForCausalLM.from_pretrained`. Unequal ones need `load_model`,
until transformers builds models from `per_layer_config` itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge import archs
from minigpt_edge_export.families import BUFFERS, FAMILIES
from minigpt_edge_export.weights import FACTORS
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, replacing, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minigpt_edge.archs.base import Arch

WEIGHTS = "model.safetensors"
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint whose architecture is known, with LLaMA's names for its sizes added."""
    config = read_json(directory / "config.json")
    archs.check_known(str(config.get("model_type")))
    return standard_names(config)


def standard_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config with hidden_size, num_hidden_layers, … added where the family has others."""
    family = FAMILIES[config["model_type"]]
    named = {name: family.get(config, name) for name in _SIZES}
    named["head_dim"] = config.get("head_dim") or named["hidden_size"] // named["num_attention_heads"]
    if named["intermediate_size"] is None and family.widening:
        named["intermediate_size"] = family.widening * named["hidden_size"]
    named["num_key_value_heads"] = config.get("num_key_value_heads") or named["num_attention_heads"]
    named["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", family.tied))
    return {**config, **{name: value for name, value in named.items() if value is not None}}


def read_weights(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint as float32; EdgeError for a damaged file."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = directory / f"{WEIGHTS}.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [WEIGHTS]
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        try:
            weights.update(load_file(directory / name))
        except (OSError, SafetensorError) as error:
            raise EdgeError(
                f"{directory / name} can't be read ({error})", "fetch or make the model again"
            ) from error
    return {name: tensor.to(torch.float32) for name, tensor in weights.items()}


def load_model(directory: Path) -> nn.Module:
    """The model of a checkpoint directory in float32, in evaluation mode, blocks sized as the config says.

    Raises:
        EdgeError: unknown architecture, damaged weights, or weights that do not fit the config.
    """
    config = read_config(directory)
    arch = archs.load_arch(config["model_type"])
    per_layer = config.pop("per_layer_config", None)
    extra = config.pop("minigpt_edge", None)
    model: Any = arch.build({**config, "dtype": "float32"})
    for index, block in enumerate(arch.blocks(model)):
        if per_layer:
            arch.resize(block, per_layer[str(index)])
    try:
        weights = arch.from_stored(read_weights(directory), config["head_dim"])
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise EdgeError(f"the weights in {directory} do not fit its config.json ({error})") from error
    if config.get("tie_word_embeddings"):
        missing = [name for name in missing if name != f"{arch.names['head']}.weight"]
        model.tie_weights()
    unexpected = [name for name in unexpected if not BUFFERS.search(name)]
    if missing or unexpected:
        raise EdgeError(
            f"the weights in {directory} do not fit its config.json: missing {missing}, "
            f"unexpected {unexpected}"
        )
    model.minigpt_edge = extra or {}
    evaluated: nn.Module = model.eval()
    return evaluated


def save_model(model: nn.Module, source: Path, directory: Path, *, tokenizer: Path | None = None) -> None:
    """Write a model as a checkpoint directory: config and sizes, float32 weights, tokenizer files.

    Args:
        model: its blocks may have unequal sizes; `per_layer_config` is written only then.
        source: the checkpoint it came from; its config is the base of the new one.
        directory: where to write; existing files of the same names are replaced.
        tokenizer: where the tokenizer files are, if not in `source`.
    """
    from safetensors.torch import save_file

    config = read_config(source)
    arch = archs.load_arch(config["model_type"])
    _write_sizes(config, arch, [arch.sizes(block) for block in arch.blocks(model)])
    state = arch.to_stored(dict(model.state_dict()), config["head_dim"])
    if config.get("tie_word_embeddings"):
        state.pop(f"{arch.family.names['head']}.weight", None)
    config["vocab_size"] = state[f"{arch.family.names['embedding']}.weight"].shape[0]
    for key in arch.bias_keys:  # a method may have given the model biases
        if getattr(model.config, key, False):  # type: ignore[union-attr]
            config[key] = True
    config["dtype"] = "float32"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FACTORS).unlink(missing_ok=True)  # of the weights that were there before
    save_file({n: t.detach().contiguous() for n, t in state.items()}, directory / WEIGHTS, {"format": "pt"})
    write_json(directory / "config.json", config)
    for name in TOKENIZER_FILES:
        origin = (tokenizer or source) / name
        if origin.exists() and origin.resolve() != (directory / name).resolve():
            shutil.copyfile(origin, directory / name)


def _write_sizes(config: dict[str, Any], arch: Arch, blocks: Sequence[dict[str, int]]) -> None:
    """Put the blocks' sizes into a config, under the family's own names too."""
    config.pop("per_layer_config", None)
    heads = config["hidden_size"] // config["head_dim"]
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]
    alike = all(entry == blocks[0] for entry in blocks)
    if alike and not (arch.derived_heads and blocks[0]["num_attention_heads"] != heads):
        config.update(blocks[0])
    else:
        config["per_layer_config"] = {str(index): entry for index, entry in enumerate(blocks)}
        for key in blocks[0]:  # the widest block: what a reader that knows one size must reserve
            config[key] = max(entry[key] for entry in blocks)
        if arch.derived_heads:
            config |= {"num_attention_heads": heads, "num_key_value_heads": heads // repeats}
    config["num_hidden_layers"] = len(blocks)
    for name, own in arch.family.keys.items():
        if name in config:
            config[own] = config[name]


def save_factors(directory: Path, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write factors.safetensors beside a checkpoint's weights, for targets that can run two small matrices.

    Args:
        directory: its model.safetensors holds the products, so that every reader works.
        factors: module path ("model.layers.3.mlp.up_proj") -> (b [out, rank], a [rank, in]).
    """
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{part}": t for name, pair in factors.items() for part, t in zip("ba", pair, strict=True)
    }
    with replacing(directory / FACTORS) as path:
        save_file({n: t.detach().float().contiguous() for n, t in tensors.items()}, path, {"format": "pt"})


def read_factors(directory: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What `save_factors` wrote; nothing for a checkpoint without factors, EdgeError for a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / FACTORS
    if not path.exists():
        return {}
    try:
        tensors = load_file(path)
        names = sorted({name.rpartition(".")[0] for name in tensors})
        return {name: (tensors[f"{name}.b"], tensors[f"{name}.a"]) for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise EdgeError(f"{path} can't be read ({error})", "run the stage that wrote it again") from error


def trim_embeddings(model: Any, tokens: Sequence[int]) -> None:
    """Slice a model's embedding and head in place to the kept tokens; tied ones stay tied."""
    import torch

    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rows = torch.tensor(tokens)
    for module in {id(m): m for m in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        module.weight = torch.nn.Parameter(module.weight.data[rows])
        if getattr(module, "bias", None) is not None:
            module.bias = torch.nn.Parameter(module.bias.data[rows])
        for name in ("num_embeddings", "out_features"):
            if hasattr(module, name):
                setattr(module, name, len(tokens))
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = tokens.index(module.padding_idx)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.config.vocab_size = len(tokens)


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, tied embeddings counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def dense_parameters(directory: Path) -> int:
    """Parameters of a checkpoint read from its safetensors headers (tied embeddings stored once)."""
    from safetensors import safe_open

    index = directory / f"{WEIGHTS}.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS]
    total = 0
    for name in names:
        with safe_open(directory / name, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open has no iterator
                size = 1
                for extent in file.get_slice(key).get_shape():
                    size *= extent
                total += size
    return total
