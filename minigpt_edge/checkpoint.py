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
from minigpt_edge_export.weights import FACTORS
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, replacing, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint whose architecture is known."""
    config = read_json(directory / "config.json")
    archs.check_known(str(config.get("model_type")))
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return config


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
    model = arch.build({**config, "dtype": "float32"})
    for index, block in enumerate(arch.blocks(model)):
        if per_layer:
            arch.resize(block, per_layer[str(index)])
    try:
        missing, unexpected = model.load_state_dict(read_weights(directory), strict=False)
    except RuntimeError as error:
        raise EdgeError(f"the weights in {directory} do not fit its config.json ({error})") from error
    if config.get("tie_word_embeddings"):
        missing = [name for name in missing if name != "lm_head.weight"]
        model.tie_weights()
    unexpected = [name for name in unexpected if not name.endswith("rotary_emb.inv_freq")]
    if missing or unexpected:
        raise EdgeError(
            f"the weights in {directory} do not fit its config.json: missing {missing}, "
            f"unexpected {unexpected}"
        )
    model.minigpt_edge = extra or {}
    return model.eval()


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
    config.pop("per_layer_config", None)
    arch = archs.load_arch(config["model_type"])
    per_block = [arch.sizes(block) for block in arch.blocks(model)]
    if all(entry == per_block[0] for entry in per_block):
        config.update(per_block[0])
    else:
        config["per_layer_config"] = {str(index): entry for index, entry in enumerate(per_block)}
        for key in per_block[0]:  # the widest block: what a reader that knows one size must reserve
            config[key] = max(entry[key] for entry in per_block)
    config["num_hidden_layers"] = len(per_block)
    state = model.state_dict()
    if config.get("tie_word_embeddings"):
        state.pop("lm_head.weight", None)
    config["vocab_size"] = next(
        t.shape[0] for name, t in state.items() if name.endswith("embed_tokens.weight")
    )
    for key in ("attention_bias", "mlp_bias"):  # a method may have given the model biases
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
