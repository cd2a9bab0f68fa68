"""Checkpoint directories: Hugging Face format, blocks of unequal sizes under `per_layer_config`.

Equal blocks of a shape that transformers takes (see `sizes`) load with stock
`AutoModelForCausalLM.from_pretrained`. Others need `load_model`, until transformers builds models from
`per_layer_config` itself.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models import archs
from minigpt_edge.models.safetensors_stream import Tensor, write_tensors
from minigpt_edge.models.sizes import repeat_rope, write_sizes
from minigpt_edge.stages.device import here
from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_export.architectures.base import BUFFERS
from minigpt_edge_export.decoder import check_weights
from minigpt_edge_export.weights import FACTORS, WEIGHTS, Weights, shards
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, replacing, understanding, write_json
from minigpt_edge_runtime.formats.tokenizer_files import CHECKPOINT_TOKENIZER_FILES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minigpt_edge.models.archs.base import Arch

LARGE_BYTES = 2**31
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint whose architecture is known, with LLaMA's names for its sizes added."""
    return standard_names(read_json(directory / "config.json"))


def standard_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config with hidden_size, num_hidden_layers, … added where the architecture has others."""
    architecture = architecture_of(config.get("model_type"))
    named = {name: architecture.get(config, name) for name in _SIZES}
    named["head_dim"] = config.get("head_dim") or named["hidden_size"] // named["num_attention_heads"]
    named["intermediate_size"] = architecture.width(config) or None
    named["num_key_value_heads"] = config.get("num_key_value_heads") or named["num_attention_heads"]
    named["tie_word_embeddings"] = bool(config.get("tie_word_embeddings", architecture.tied))
    return {**config, **{name: value for name, value in named.items() if value is not None}}


def special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids of BOS, EOS and padding that a config states, as generation_config.json has them."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def write_converted(
    directory: Path, config: Mapping[str, Any], tensors: Iterable[Tensor], source: Path
) -> None:
    """Write the config and the weights of a model that was converted; EdgeError if they do not fit.

    Args:
        source: the file or directory that the model was in, for the message.
    """
    tensors = list(tensors)
    check_weights(dict(config), {tensor.name: tensor.shape for tensor in tensors}, source)
    write_tensors(directory / WEIGHTS, tensors)
    write_json(directory / "config.json", config)


def load_model(directory: Path, *, lazy: bool = False, changed: Path | None = None) -> nn.Module:
    """The model of a checkpoint directory in float32, in evaluation mode, blocks sized as the config says.

    It is on the device that is computed on.

    Args:
        lazy: the blocks' weights are read when they are needed, see `resident`.
        changed: folder for blocks of a lazy model that are changed; without it they can only be read.

    Raises:
        EdgeError: unknown architecture, damaged weights, or weights that do not fit the config.
    """
    import torch

    from minigpt_edge.models import resident

    config = read_config(directory)
    weights = Weights(shards(directory))
    with understanding(directory / "config.json"):
        arch = archs.load_arch(config)
        if config["num_hidden_layers"] > len(weights.shapes):
            raise ValueError(f"{config['num_hidden_layers']} blocks of {len(weights.shapes)} tensors")
        model: Any = _empty(config, arch)
    names = [name for name in weights.shapes if not BUFFERS.search(name)]
    if lazy:
        resident.offload_blocks(model, arch, config["head_dim"], weights, changed)
        names = [name for name in names if not name.startswith(f"{arch.blocks_path}.")]
    try:
        stored = {name: here(torch.from_numpy(weights.load(name))) for name in names}
        state = arch.from_stored(stored, config["head_dim"])
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise EdgeError(f"the weights in {directory} do not fit its config.json ({error})") from error
    if config["tie_word_embeddings"]:
        missing = [name for name in missing if name != f"{arch.names['head']}.weight"]
        model.tie_weights()
    if lazy:
        missing = [name for name in missing if not name.startswith(f"{arch.blocks_path}.")]
    if missing or unexpected:
        raise EdgeError(
            f"the weights in {directory} do not fit its config.json: missing {missing}, "
            f"unexpected {unexpected}"
        )
    model.minigpt_edge = config.get("minigpt_edge") or {}
    evaluated: nn.Module = model.eval()
    return evaluated


def _empty(config: dict[str, Any], arch: Arch) -> Any:
    """A model whose parameters are on the meta device: shapes without memory."""
    import torch

    per_layer = config.get("per_layer_config")
    plain = {key: value for key, value in config.items() if key not in ("per_layer_config", "minigpt_edge")}
    with torch.device("meta"):
        model: Any = arch.build({**plain, "dtype": "float32"})
    for index, block in enumerate(arch.blocks(model)):
        if per_layer:
            arch.resize(block, per_layer[str(index)])
    for path, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # Rotary ones are not stored.
            model.set_submodule(path, type(module)(model.config))
    return model


def is_large(directory: Path) -> bool:
    """Whether a checkpoint is better left on disk where that is possible: over LARGE_BYTES in float32."""
    return 4 * stored_parameters(directory) > LARGE_BYTES


def save_model(model: nn.Module, source: Path, directory: Path) -> None:
    """Write a model as a checkpoint directory: config and sizes, float32 weights, tokenizer files.

    Args:
        model: its blocks may have unequal sizes; `per_layer_config` is written only then. If they are on
            disk, the directory gets shards.
        source: the checkpoint it came from, with the config that the new one begins with, and the tokenizer.
        directory: where to write, which may be `source`; existing files of the same names are replaced.
    """
    from safetensors.torch import save_file

    from minigpt_edge.models import resident

    config = read_config(source)
    arch = archs.load_arch(config)
    write_sizes(config, [arch.sizes(block) for block in arch.blocks(model)])
    repeat_rope(config)
    lazy, blocks = resident.is_offloaded(model, arch), f"{arch.blocks_path}."
    tensors = {n: t.detach() for n, t in model.state_dict().items() if not (lazy and n.startswith(blocks))}
    state = arch.to_stored(tensors, config["head_dim"])
    if config.get("tie_word_embeddings"):
        state.pop(f"{arch.architecture.names['head']}.weight", None)
    config["vocab_size"] = state[f"{arch.architecture.names['embedding']}.weight"].shape[0]
    for key in arch.architecture.bias_keys:  # A method may have given the model biases.
        if getattr(model.config, key, False):  # type: ignore[union-attr]
            config[key] = True
    config["dtype"] = "float32"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FACTORS).unlink(missing_ok=True)  # They belong to the weights that are replaced.
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    if lazy:
        resident.write_shards(model, arch, state, directory)
    else:
        (directory / resident.INDEX).unlink(missing_ok=True)
        save_file(state, directory / WEIGHTS, {"format": "pt"})
    write_json(directory / "config.json", config)
    for name in CHECKPOINT_TOKENIZER_FILES:
        if (source / name).exists() and source.resolve() != directory.resolve():
            shutil.copyfile(source / name, directory / name)


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
        save_file(
            {n: t.detach().float().cpu().contiguous() for n, t in tensors.items()}, path, {"format": "pt"}
        )


def trim_embeddings(model: Any, tokens: Sequence[int]) -> None:
    """Slice a model's embedding and head in place to the kept tokens; tied ones remain tied."""
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


def stored_parameters(directory: Path) -> int:
    """Parameters of a checkpoint by its safetensors headers, tied embeddings counted once."""
    return sum(math.prod(shape) for shape in Weights(shards(directory)).shapes.values())
