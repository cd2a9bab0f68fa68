"""The sizes of blocks in a config.json: equal ones as stock transformers reads them, else `per_layer_config`.

transformers itself is asked which numbers of heads its classes take: some want them to divide the hidden
size, some have no head_dim and take it from hidden size ÷ heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minigpt_edge_export.architectures import architecture_of
from minigpt_edge_runtime.errors import EdgeError

Sizes = Mapping[str, int]  # intermediate_size, num_attention_heads and num_key_value_heads of one block


def block_sizes(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """(FFN neurons, KV groups) of every block, from a config with LLaMA's names for its sizes."""
    own = config.get("per_layer_config") or {}
    blocks = ({**config, **own.get(str(index), {})} for index in range(config["num_hidden_layers"]))
    return [(int(block["intermediate_size"]), int(block["num_key_value_heads"])) for block in blocks]


def repeats(config: Mapping[str, Any]) -> int:
    """Query heads that share a key/value head."""
    return int(config["num_attention_heads"] // config["num_key_value_heads"])


def stock_takes(config: Mapping[str, Any], groups: int) -> bool:
    """Whether transformers builds the config's model with so many KV groups in every block."""
    heads = groups * repeats(config)
    if architecture_of(config["model_type"]).derived_heads:
        return bool(heads * config["head_dim"] == config["hidden_size"])
    from transformers import CONFIG_MAPPING

    plain = {key: value for key, value in config.items() if key not in ("per_layer_config", "minigpt_edge")}
    try:
        CONFIG_MAPPING[config["model_type"]](
            **{**plain, "num_attention_heads": heads, "num_key_value_heads": groups}
        )
    except Exception:  # Its classes raise many kinds.
        return False
    return True


def stock_groups(config: Mapping[str, Any]) -> list[int]:
    """The numbers of KV groups, ascending, that all blocks may keep if stock transformers is to load them.

    At most as many as the block with the fewest has, and that number alone if transformers takes none.
    """
    most = min(groups for _, groups in block_sizes(config))
    return [groups for groups in range(1, most + 1) if stock_takes(config, groups)] or [most]


def write_sizes(config: dict[str, Any], blocks: Sequence[Sizes]) -> None:
    """Put the blocks' sizes into a config, under the architecture's own names too.

    The config's sizes are those that transformers builds; blocks that differ from it, or from each other,
    are in `per_layer_config`.

    Raises:
        EdgeError: transformers builds no model that has as many heads as the widest block.
    """
    architecture = architecture_of(config["model_type"])
    shared = repeats(config)
    widest = {key: max(entry[key] for entry in blocks) for key in blocks[0]}
    wanted = widest["num_key_value_heads"]
    most = max(4 * wanted, config["num_key_value_heads"])  # the model's own, if it has lost heads
    candidates = range(wanted, min(most, config["hidden_size"]) + 1)
    groups = next((n for n in candidates if stock_takes(config, n)), None)
    if groups is None:
        raise EdgeError(
            f"transformers builds no {config['model_type']} model with {widest['num_attention_heads']} heads "
            f"or more on a hidden size of {config['hidden_size']}",
            "use a model that transformers loads",
        )
    config.pop("per_layer_config", None)
    if any(entry != widest for entry in blocks) or groups != wanted:
        config["per_layer_config"] = {str(index): dict(entry) for index, entry in enumerate(blocks)}
    # A reader that knows one size must reserve that of the widest block.
    config |= widest | {"num_attention_heads": groups * shared, "num_key_value_heads": groups}
    config["num_hidden_layers"] = len(blocks)
    if config.get("layer_types"):  # Qwen's: one of full attention is like another
        config["layer_types"] = config["layer_types"][: len(blocks)]
    for name, own in architecture.keys.items():
        if name in config:
            config[own] = config[name]


def repeat_rope(config: dict[str, Any]) -> None:
    """Write what `rope_parameters` says at the config's top too, where it was before transformers 5.

    mlx-lm would otherwise rotate with base 10,000, and without scaling.
    """
    given = config.get("rope_parameters") or {}
    if given.get("rope_theta"):
        config["rope_theta"] = given["rope_theta"]
    if given.get("rope_type", "default") != "default":
        config["rope_scaling"] = dict(given)
