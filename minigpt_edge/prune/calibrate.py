"""What is measured on the calibration set of a model as it is: scores of all its units, importance matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.resident import resident
from minigpt_edge.prune.context import Done, unwatched
from minigpt_edge.prune.moments import Means
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge.prune.streams import Half, Stream, Units

if TYPE_CHECKING:
    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.scores import BlockScores


def score_blocks(
    model: nn.Module,
    arch: Arch,
    windows: Tensor,
    scores: Callable[[UnitStatistics], Tensor],
    on_block: Done = unwatched,
) -> BlockScores:
    """Scores of every block's (KV groups, neurons) on the dense model, for one cut over all blocks."""
    total, found = len(arch.blocks(model)), []
    with torch.inference_mode():
        for half, values, _ in _walk(Stream(arch, model, windows, two=False), model):
            means, weight = Means.of(values), half.reader.weight.t()
            found.append(
                scores(UnitStatistics(weight, means.energy, means.mean, means.mean_abs, group=half.group))
            )
            on_block(half.index + 1, total)
    return list(zip(found[::2], found[1::2], strict=True))


def measure_importance(model: nn.Module, arch: Arch, windows: Tensor) -> dict[str, Tensor]:
    """The importance matrix of a model as it is: GGUF name -> mean squared input, float32."""
    importance: dict[str, Tensor] = {}
    with torch.inference_mode():
        stream = Stream(arch, model, windows, two=False)
        for half, values, read in _walk(stream, model):
            importance |= half.importance(read / stream.tokens, Means.of(values).energy)
        return importance | stream.head_importance(model)


def _walk(stream: Stream, model: nn.Module) -> Iterator[tuple[Half, Units, Tensor]]:
    """Run a model as it is: every half, its units, and its summed squared inputs [hidden]."""
    for index, block in enumerate(stream.arch.blocks(model)):
        with resident(block):
            for half in stream.halves(index, block):
                values, _, read = stream.gather(half)
                yield half, values, read
                linear = half.reader
                stream.advance(values, torch.arange(linear.in_features), linear.weight.t(), linear.bias)
