"""Mixed quantization: which type each matrix gets, by what it costs on held-out text and in bytes.

Matrices of one kind in one third of the depth share a choice. What a choice costs is measured with llama.cpp:
the divergence (KL, nats per token) from the checkpoint of a file in which this group alone has that type and
all others have the largest. For the law model these costs add up to within a tenth of what all of them cost
together, and a thousand tokens tell them apart, which differences in likelihood do not (docs/decisions.md).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt_edge_export.gguf.quantize import TYPES, padded, quantize, tensor_bytes
from minigpt_edge_export.gguf.rounding import Rounding
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.formats.gguf_header import GgufHeader, TensorInfo, read_header
from minigpt_edge_runtime.formats.gguf_names import BLOCK

# Bits a weight has at least -> type of rows that are multiples of 256, and of 32. Q4_1 and Q5_1 are further
# from the law model's checkpoint than IQ4_NL and Q5_0; IQ2 and IQ3 take long to make.
LEVELS: dict[int, tuple[str, str]] = {
    2: ("q2_k", "iq4_nl"),
    3: ("q3_k", "iq4_nl"),
    4: ("iq4_xs", "iq4_nl"),
    5: ("q5_k", "q5_0"),
    6: ("q6_k", "q8_0"),
    8: ("q8_0", "q8_0"),
}
_PARTS = 3  # The depth is divided into so many.

Types = Mapping[str, str]  # tensor name -> type


@dataclass(frozen=True)
class Group:
    """Matrices that get their types together; `rungs` are the choices, from the smallest to the largest."""

    tensors: tuple[TensorInfo, ...]
    rungs: tuple[tuple[str, ...], ...]

    def sizes(self, rung: int) -> list[int]:
        """Bytes of each matrix in a file."""
        return [
            padded(tensor_bytes(tensor.shape, kind))
            for tensor, kind in zip(self.tensors, self.rungs[rung], strict=True)
        ]

    def types(self, rung: int) -> dict[str, str]:
        """The type of each matrix."""
        return {tensor.name: kind for tensor, kind in zip(self.tensors, self.rungs[rung], strict=True)}


@dataclass(frozen=True)
class Choices:
    """What can be chosen in a file, and the bytes of all the rest of it."""

    groups: tuple[Group, ...]
    fixed: int

    @property
    def smallest(self) -> int:
        """Bytes of the file with the smallest types."""
        return self.fixed + sum(sum(group.sizes(0)) for group in self.groups)

    @property
    def offered(self) -> dict[str, set[str]]:
        """All the types that each matrix can get, as ggml calls them."""
        found: dict[str, set[str]] = {}
        for group in self.groups:
            for rung in range(len(group.rungs)):
                for name, kind in group.types(rung).items():
                    found.setdefault(name, set()).add(kind.upper())
        return found

    @property
    def top(self) -> dict[str, str]:
        """The largest types."""
        return {name: kind for group in self.groups for name, kind in group.types(-1).items()}


class Step(NamedTuple):
    """One group going up from a rung to another; `rate` is the divergence it takes away per byte."""

    rate: float
    group: int
    start: int
    end: int


def choices_of(source: Path, target: Target) -> Choices:
    """The groups of an F16 file's matrices and the types that a family lets them have.

    Raises:
        EdgeError: the file is damaged.
    """
    least = int(re.findall(r"\d", target.types[0])[0])
    levels = [kinds for bits, kinds in LEVELS.items() if bits >= least]
    if least < 5:  # Q5_0 is slow: a file that mixes it in decodes a third slower (docs/decisions.md)
        levels = [(wide, "q8_0" if narrow == "q5_0" else narrow) for wide, narrow in levels]
    header = read_header(source)
    blocks = int(header.of_architecture("block_count", 1))
    found: dict[tuple[str, int], list[TensorInfo]] = {}
    for tensor in header.tensors:
        if len(tensor.shape) > 1 and tensor.shape[0] % 32 == 0:
            block, kind = _place(tensor.name)
            found.setdefault((kind, (block or 0) * _PARTS // blocks), []).append(tensor)
    groups = []
    for tensors in found.values():
        rungs = (tuple(kinds[0 if t.shape[0] % 256 == 0 else 1] for t in tensors) for kinds in levels)
        groups.append(Group(tuple(tensors), tuple(dict.fromkeys(rungs))))
    chosen = sum(padded(tensor.nbytes) for group in groups for tensor in group.tensors)
    return Choices(tuple(groups), header.file_bytes - chosen)


@dataclass(frozen=True)
class Trials:
    """What files are made from to be measured.

    Attributes:
        source: the F16 file.
        folder: for files of each type.
        imatrix, threads: as `quantize` takes them.
        rounding: what is better than what `quantize` writes.
    """

    source: Path
    folder: Path
    imatrix: Mapping[str, np.ndarray] | None = None
    threads: int = 0
    rounding: Rounding | None = None


def measure_costs(
    trials: Trials,
    choices: Choices,
    measure: Callable[[Path], float],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[float]]:
    """What each rung of each group costs beside the largest types everywhere; 0 for the last one of each.

    Args:
        measure: a GGUF file's divergence from the checkpoint, nats per token.

    Raises:
        EdgeError: as `quantize`.
    """
    assembly = _Assembly(trials, choices)
    model, top = trials.folder / "trial.gguf", choices.top

    def cost(types: Types) -> float:
        assembly.assemble(types, model)
        return measure(model)

    base = cost(top)
    costs = [[0.0] * len(group.rungs) for group in choices.groups]
    tried = [(n, rung) for n, group in enumerate(choices.groups) for rung in range(len(group.rungs) - 1)]
    for done, (number, rung) in enumerate(tried, 1):
        costs[number][rung] = max(0.0, cost({**top, **choices.groups[number].types(rung)}) - base)
        on_progress(done, len(tried))
    return costs


def within(choices: Choices, costs: Sequence[Sequence[float]], limit: int) -> dict[str, str]:
    """Types of all matrices that fill a file up to `limit` bytes, the best gain per byte first.

    A group that no longer fits goes up matrix by matrix. The limit must be at least `choices.smallest`.
    """
    left = limit - choices.smallest
    rungs = [[0] * len(group.tensors) for group in choices.groups]
    for step in _steps(choices, costs):
        group = choices.groups[step.group]
        start, end = group.sizes(step.start), group.sizes(step.end)
        for index, rung in enumerate(rungs[step.group]):
            if rung == step.start and end[index] - start[index] <= left:
                left -= end[index] - start[index]
                rungs[step.group][index] = step.end
    return {
        tensor.name: group.rungs[rung][index]
        for group, own in zip(choices.groups, rungs, strict=True)
        for index, (tensor, rung) in enumerate(zip(group.tensors, own, strict=True))
    }


def patterns(types: Types) -> dict[str, str]:
    """Types by tensor name as the regular expressions that `quantize` takes, one for each kind and type."""
    places: dict[tuple[str, str], list[int | None]] = {}
    for name, kind in types.items():
        block, part = _place(name)
        places.setdefault((part, kind), []).append(block)
    found = {}
    for (part, kind), blocks in places.items():
        numbers = "|".join(str(block) for block in blocks)
        prefix = "" if blocks == [None] else rf"{BLOCK}\.({numbers})\."
        found[rf"^{prefix}{part}\.weight$"] = kind
    return found


def _place(name: str) -> tuple[int | None, str]:
    """ "blk.3.ffn_up.weight" -> (3, "ffn_up"), "output.weight" -> (None, "output")."""
    *block, part, _ = name.split(".")
    return (int(block[1]) if block else None), part


def _steps(choices: Choices, costs: Sequence[Sequence[float]]) -> list[Step]:
    """The ways up that are worth taking, the highest rate first: each group's lower convex hull."""
    steps = []
    for number, (group, cost) in enumerate(zip(choices.groups, costs, strict=True)):
        sizes = [sum(group.sizes(rung)) for rung in range(len(group.rungs))]
        at = 0
        while at < len(sizes) - 1:
            ahead = [
                Step((cost[at] - cost[rung]) / (sizes[rung] - sizes[at]), number, at, rung)
                for rung in range(at + 1, len(sizes))
            ]
            best = max(ahead, key=lambda step: (step.rate, step.end))
            steps.append(best)
            at = best.end
    return sorted(steps, key=lambda step: -step.rate)


class _Assembly:
    """A model quantized to each type once, and files of any mix assembled from the tensors of these."""

    def __init__(self, trials: Trials, choices: Choices) -> None:
        self._files: dict[str, Path] = {}
        self._headers: dict[str, GgufHeader] = {}
        top = choices.top
        offered: dict[str, dict[str, str]] = {kind: {} for kind in top.values()}
        for group in choices.groups:
            for rung in range(len(group.rungs)):
                for name, kind in group.types(rung).items():
                    offered.setdefault(kind, {})[name] = kind
        for kind, types in offered.items():
            path = self._files[kind] = trials.folder / f"only-{kind}.gguf"
            wanted = patterns({**top, **types})
            quantize(
                trials.source,
                path,
                "q8_0",
                imatrix=trials.imatrix,
                threads=trials.threads,
                tensor_types=wanted,
            )
            if trials.rounding is not None:
                trials.rounding.improve(path)
            self._headers[kind] = read_header(path)
        self._rest = next(iter(offered))  # where norms, and all that has no choice, are taken from

    def assemble(self, types: Types, path: Path) -> None:
        """Write the file in which matrices have these types."""
        order = [tensor.name for tensor in self._headers[self._rest].tensors]
        sources = {name: types.get(name, self._rest) for name in order}
        known = {kind: {t.name: t for t in header.tensors} for kind, header in self._headers.items()}
        tensors = [known[kind][name] for name, kind in sources.items()]
        with open(path, "wb") as out:
            out.write(self._start(self._rest)[0])
            out.write(b"".join(_infos(tensors)))
            out.write(b"\0" * (padded(out.tell()) - out.tell()))
            for tensor, kind in zip(tensors, sources.values(), strict=True):
                with open(self._files[kind], "rb") as file:
                    file.seek(self._start(kind)[1] + tensor.offset)
                    out.write(file.read(tensor.nbytes))
                out.write(b"\0" * (padded(tensor.nbytes) - tensor.nbytes))

    def _start(self, kind: str) -> tuple[bytes, int]:
        """A file up to its list of tensors, and where its data begin."""
        header = self._headers[kind]
        infos = b"".join(_infos(header.tensors))
        with open(self._files[kind], "rb") as file:
            start = file.read(header.data_start)
        return start[: start.index(infos)], header.data_start


def _infos(tensors: Sequence[TensorInfo]) -> Iterator[bytes]:
    """What a header says of each tensor, the data one after the other."""
    offset = 0
    for tensor in tensors:
        name, size = tensor.name.encode(), len(tensor.shape)
        shape = struct.pack(f"<I{size}Q", size, *tensor.shape)
        yield (
            struct.pack("<Q", len(name))
            + name
            + shape
            + struct.pack("<IQ", TYPES[tensor.type].number, offset)
        )
        offset += padded(tensor.nbytes)
