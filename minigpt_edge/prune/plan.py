"""The plan: which FFN neurons, KV groups and tokens are kept. Small, readable JSON that can be given back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.models.sizes import block_sizes
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding, write_json

FORMAT = 1
MOST = 2**24  # indices in one list; no model has as many neurons or tokens


def to_ranges(indices: Iterable[int]) -> str:
    """Ascending indices as text: 0,1,2,7,9,10 -> "0-2,7,9-10"."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def from_ranges(text: str) -> tuple[int, ...]:
    """The inverse of `to_ranges`; ValueError unless strictly ascending and below MOST."""
    indices: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        if int(last or first) >= MOST or len(part) > 20:
            raise ValueError(f"an index is too large: {part[:40]!r}")
        indices.extend(range(int(first), int(last or first) + 1))
    if any(b <= a for a, b in zip(indices, indices[1:], strict=False)):
        raise ValueError(f"indices are not ascending: {text[:40]!r}")
    return tuple(indices)


@dataclass(frozen=True)
class BlockPlan:
    """What is kept of one block: ascending indices into the dense block."""

    kv_groups: tuple[int, ...]
    neurons: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What is kept of a model.

    Attributes:
        model: sha256 of the dense checkpoint that the indices refer to.
        method: the method that chose.
        tokens: kept ids of the dense vocabulary, ascending.
        blocks: what is kept of each block.
        parameters: (dense, kept), tied embeddings counted once.
    """

    model: str
    method: str
    tokens: tuple[int, ...]
    blocks: tuple[BlockPlan, ...]
    parameters: tuple[int, int]

    @property
    def sparsity(self) -> float:
        """Fraction of the dense parameters that are removed."""
        return 1 - self.parameters[1] / self.parameters[0]


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan as JSON."""
    blocks = [
        {
            "width": len(block.neurons),
            "kv_groups": to_ranges(block.kv_groups),
            "neurons": to_ranges(block.neurons),
        }
        for block in plan.blocks
    ]
    dense, kept = plan.parameters
    value = {
        "format": FORMAT,
        "model": plan.model,
        "method": plan.method,
        "sparsity": round(plan.sparsity, 6),
        "parameters": {"dense": dense, "kept": kept},
        "vocabulary": {"size": len(plan.tokens), "tokens": to_ranges(plan.tokens)},
        "blocks": blocks,
    }
    write_json(path, value)


def read_plan(path: Path) -> Plan:
    """Read a plan; EdgeError if it is missing, damaged or of another format."""
    value: Any = read_json(path)
    with understanding(path, "give a plan.json that a build has written"):
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}, expected {FORMAT}")
        blocks = tuple(
            BlockPlan(from_ranges(block["kv_groups"]), from_ranges(block["neurons"]))
            for block in value["blocks"]
        )
        parameters = (int(value["parameters"]["dense"]), int(value["parameters"]["kept"]))
        tokens = from_ranges(value["vocabulary"]["tokens"])
        return Plan(str(value["model"]), str(value["method"]), tokens, blocks, parameters)


def check_plan(plan: Plan, config: dict[str, Any], fingerprint: str, path: Path) -> None:
    """EdgeError unless the plan was made for the model of that fingerprint and config."""
    if plan.model != fingerprint:
        raise EdgeError(
            f"{path} was made for another model (sha256 {plan.model[:12]}…, this one: {fingerprint[:12]}…)",
            "give the model that the plan was made for with --model, or build without --plan",
        )
    dense = block_sizes(config)
    fits = len(plan.blocks) == len(dense) and all(
        block.kv_groups and block.neurons and block.kv_groups[-1] < groups and block.neurons[-1] < width
        for block, (width, groups) in zip(plan.blocks, dense, strict=True)
    )
    if not fits or not plan.tokens or plan.tokens[-1] >= config["vocab_size"]:
        raise EdgeError(f"{path} keeps units that the model lacks", "build without --plan")
