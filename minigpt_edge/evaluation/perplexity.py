"""Likelihood under torch: padded batches of token sequences, and a checkpoint's bits per byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge.data.windows import read_texts
from minigpt_edge.models.forward import (
    check_context,
    encode,
    head_of,
    hidden_states,
    load_fast,
    read_tokenizer,
)
from minigpt_edge.stages.device import CPU, here

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minigpt_edge_runtime.scoring.held_out import Window

BATCH_TOKENS = 4096  # padded tokens scored together


@dataclass(frozen=True)
class Batch:
    """Sequences of similar length.

    Attributes:
        rows: their numbers, int64 [n].
        ids: int64 [n, width], see `pad`.
        scored: which tokens' likelihood counts, bool [n, width]; never the first.
    """

    rows: Tensor
    ids: Tensor
    scored: Tensor

    @property
    def first(self) -> Tensor:
        """Which tokens are the first of their sequence that is scored, bool [n, width]."""
        return self.scored & ~self.scored.roll(1, 1)


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [n, width], with padding on the right, where a causal model does not look."""
    import torch

    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64, device=CPU)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, device=CPU)
    return here(ids)


def batches(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Batch]:
    """At most BATCH_TOKENS padded tokens (or one sequence) each.

    Args:
        starts: index of each sequence's first scored token, at least 1.
    """
    import torch

    groups: list[list[int]] = []
    for number in sorted(range(len(sequences)), key=lambda number: -len(sequences[number])):
        if not groups or len(sequences[groups[-1][0]]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(number)
    made = []
    for group in groups:
        ids = pad([sequences[number] for number in group])
        scored = torch.zeros(ids.shape, dtype=torch.bool, device=CPU)
        for row, number in enumerate(group):
            scored[row, starts[number] : len(sequences[number])] = True
        made.append(Batch(torch.tensor(group), ids, here(scored)))
    return made


def sum_nll(model: nn.Module, sequences: Sequence[Sequence[int]]) -> float:
    """Summed negative log-likelihood in nats of all tokens but each sequence's first.

    Args:
        model: a causal language model with `base_model` and output embeddings.
        sequences: token ids; each is scored on its own, under bf16 autocast where the device has bf16.
    """
    import torch

    from minigpt_edge.models.chunked_loss import chunked_nll

    was_training = model.training
    model.eval()
    total = 0.0
    scored = [sequence for sequence in sequences if len(sequence) > 1]
    with torch.inference_mode():
        for batch in batches(scored, [1] * len(scored)):
            hidden = hidden_states(model, batch.ids)[:, :-1][batch.scored[:, 1:]]
            nll = chunked_nll(*head_of(model, hidden), batch.ids[batch.scored])
            total += float(nll.cpu().double().sum())
    model.train(was_training)
    return total


def summary(nll: float, windows: Sequence[Window]) -> dict[str, float]:
    """bits_per_byte and perplexity_per_base_token of a summed nll in nats, with the sums they come from."""
    size, base = sum(window.bytes for window in windows), sum(window.base_tokens for window in windows)
    return {
        "nll": nll,
        "windows": len(windows),
        "bytes": size,
        "base_tokens": base,
        "bits_per_byte": nll / math.log(2) / size,
        "perplexity_per_base_token": math.exp(min(nll / base, 700.0)),
    }


def evaluate(checkpoint: Path, texts: Path) -> dict[str, float]:
    """Score a checkpoint directory on an evaluation text file; see `summary` for the keys.

    Raises:
        EdgeError: either is damaged, or a window is longer than the model's context.
    """
    from minigpt_edge.models.checkpoint import is_large

    return evaluate_model(load_fast(checkpoint, lazy=is_large(checkpoint)), checkpoint, texts)


def evaluate_model(model: nn.Module, tokenizer: Path, texts: Path) -> dict[str, float]:
    """`evaluate` for a model in memory, with the tokenizer of a checkpoint directory."""
    start, windows = read_texts(texts)
    sequences = encode(read_tokenizer(tokenizer), start, [window.text for window in windows])
    check_context(model, sequences)
    return summary(sum_nll(model, sequences), windows)
