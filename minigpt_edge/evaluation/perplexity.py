"""Bits per byte of a checkpoint on an evaluation text file (`*.texts.json`), with torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge.data.windows import read_texts
from minigpt_edge.models.forward import check_context, encode, head_of, hidden_states, read_tokenizer

if TYPE_CHECKING:
    from torch import nn

    from minigpt_edge_runtime.scoring.held_out import Window

BATCH_TOKENS = 4096  # padded tokens scored together


def sum_nll(model: nn.Module, sequences: list[list[int]]) -> float:
    """Summed negative log-likelihood in nats of all tokens but each sequence's first.

    Args:
        model: a causal language model with `base_model` and output embeddings.
        sequences: token ids; each is scored on its own, under bf16 autocast where the processor has bf16.
    """
    import torch

    from minigpt_edge.models.chunked_loss import chunked_nll

    was_training = model.training
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for batch in _batches(sequences):
            width = max(len(sequence) for sequence in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.int64)
            real = torch.zeros(len(batch), width, dtype=torch.bool)
            for row, sequence in enumerate(batch):  # padding on the right is invisible to a causal model
                ids[row, : len(sequence)] = torch.tensor(sequence)
                real[row, 1 : len(sequence)] = True
            hidden, weight = head_of(model, hidden_states(model, ids)[:, :-1][real[:, 1:]])
            total += float(chunked_nll(hidden, weight, ids[real]).double().sum())
    model.train(was_training)
    return total


def _batches(sequences: list[list[int]]) -> list[list[list[int]]]:
    """Sequences of similar length together, at most BATCH_TOKENS padded tokens (or one sequence) each."""
    batches: list[list[list[int]]] = []
    for sequence in sorted((s for s in sequences if len(s) > 1), key=len, reverse=True):
        if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def summary(nll: float, windows: Sequence[Window]) -> dict[str, float]:
    """bits_per_byte and perplexity_per_base_token of a summed nll in nats, with the sums they come from."""
    size, base = sum(w.bytes for w in windows), sum(w.base_tokens for w in windows)
    return {
        "nll": nll,
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
    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import is_large, load_model

    start, windows = read_texts(texts)
    sequences = encode(read_tokenizer(checkpoint), start, [w.text for w in windows])
    model = load_model(checkpoint, lazy=is_large(checkpoint))
    attention.use_in(model)
    check_context(model, sequences)
    return summary(sum_nll(model, sequences), windows)
