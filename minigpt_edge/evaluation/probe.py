"""Scoring a model again and again while its blocks change one at a time: what precedes the change is kept.

Import this module inside functions: it needs torch at its head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253
from tokenizers import Tokenizer
from torch import Tensor  # noqa: TID253

from minigpt_edge.evaluation.perplexity import BATCH_TOKENS
from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.chunked_loss import chunk_rows
from minigpt_edge.models.forward import head_of
from minigpt_edge.models.precision import compute_dtype

KEPT_BYTES = 2**29  # of hidden states between blocks; with more of them, only every nth block's are kept


@dataclass(frozen=True)
class Measured:
    """Per sequence: summed nll in nats (float64) and number of its scored tokens, and whether the first of
    them is the model's likeliest token."""

    nll: Tensor
    tokens: Tensor
    right: Tensor

    @property
    def nll_per_token(self) -> float:
        """Over all scored tokens."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def log_loss(self) -> Tensor:
        """Nats per scored token of each sequence, float64."""
        return self.nll / self.tokens

    @property
    def accuracy(self) -> float:
        """The share of sequences whose first scored token is the likeliest."""
        return float(self.right.double().mean())


@dataclass(frozen=True)
class _Batch:
    """Sequences of similar length: their numbers, ids [n, width] and which tokens are scored [n, width]."""

    rows: Tensor
    ids: Tensor
    scored: Tensor
    first: Tensor


class Probe:
    """Token sequences, of which a model is scored on the tokens from a start on.

    The model it is made with is the dense one. A call for another names the first block that may differ from
    it: the hidden states before that block are the dense model's. Products are in bf16 where the processor
    has it; hidden states between blocks are float32, as in training and in `perplexity`.

    Args:
        sequences: token ids.
        starts: index of each sequence's first scored token, at least 1.
        forms: token id -> number of what it says, see `token_forms`; by default only a token itself is right.
    """

    def __init__(
        self,
        model: Any,
        arch: Arch,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        forms: Sequence[int] | None = None,
    ) -> None:
        if any(not 1 <= start < len(ids) for ids, start in zip(sequences, starts, strict=True)):
            raise ValueError("every sequence needs a token before the first one that is scored")
        self.arch, self.dtype, self.count = arch, compute_dtype(), len(sequences)
        self.forms = None if forms is None else torch.tensor(forms)
        self.batches = _batches(sequences, starts)
        with torch.inference_mode():
            hidden = [arch.embed(model, batch.ids).float() for batch in self.batches]
            turns = [arch.positions(model, x) for x in hidden]
            self.positions = [tuple(part.to(self.dtype) for part in turn) for turn in turns]
            blocks = arch.blocks(model)
            size = sum(x.nbytes for x in hidden) * (len(blocks) + 1)
            self.every = -(-size // KEPT_BYTES)
            self.kept = {0: hidden}
            for index, block in enumerate(blocks, 1):
                hidden = self._advance(block, hidden)
                if index % self.every == 0:
                    self.kept[index] = hidden

    def measure(self, model: Any, first: int = 0) -> Measured:
        """Score a model whose blocks before `first` are the dense model's."""
        nll = torch.zeros(self.count, dtype=torch.float64)
        tokens = torch.zeros(self.count, dtype=torch.int64)
        right = torch.zeros(self.count, dtype=torch.bool)
        with torch.inference_mode():
            for batch, hidden in zip(self.batches, self._final(model, first), strict=True):
                final = self.arch.final_norm(model, hidden[:, :-1][batch.scored[:, 1:]])
                read, weight = head_of(model, final.to(self.dtype))
                wanted = batch.ids[batch.scored]
                losses, likeliest = _predict(read, weight.to(self.dtype), wanted)
                if self.forms is not None:
                    likeliest, wanted = self.forms[likeliest], self.forms[wanted]
                row = batch.rows[:, None].expand_as(batch.scored)[batch.scored]
                nll.index_add_(0, row, losses.double())
                tokens.index_add_(0, row, torch.ones_like(row))
                opens = batch.first[batch.scored]
                right[row[opens]] = (likeliest == wanted)[opens]
        return Measured(nll, tokens, right)

    def likelihood(self, model: Any, first: int = 0) -> float:
        """Minus nats per scored token."""
        return -self.measure(model, first).nll_per_token

    def accuracy(self, model: Any, first: int = 0) -> float:
        """The share of sequences whose first scored token is the likeliest."""
        return self.measure(model, first).accuracy

    def _final(self, model: Any, first: int) -> list[Tensor]:
        """The hidden states after the last block."""
        blocks = self.arch.blocks(model)
        start = first // self.every * self.every
        hidden = self.kept[start]
        for block in blocks[start:]:
            hidden = self._advance(block, hidden)
        return hidden

    def _advance(self, block: Any, hidden: list[Tensor]) -> list[Tensor]:
        fast = block if self.dtype is torch.float32 else copy.deepcopy(block).to(self.dtype)
        pairs = zip(hidden, self.positions, strict=True)
        return [self.arch.forward(fast, x, position) for x, position in pairs]


def token_forms(tokenizer: Tokenizer) -> list[int]:
    """Token id -> a number that tokens share which say the same but for case and space around them."""
    numbers: dict[str, int] = {}
    forms = []
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        # a piece of a character says nothing, and is equal to itself alone
        form = f"token {token}" if "\ufffd" in text else f"text {text.strip().lower()}"
        forms.append(numbers.setdefault(form, len(numbers)))
    return forms


def _batches(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[_Batch]:
    """At most BATCH_TOKENS padded tokens (or one sequence) each."""
    groups: list[list[int]] = []
    for number in sorted(range(len(sequences)), key=lambda number: -len(sequences[number])):
        if not groups or len(sequences[groups[-1][0]]) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(number)
    batches = []
    for group in groups:
        shape = len(group), len(sequences[group[0]])
        ids = torch.zeros(shape, dtype=torch.int64)  # padding on the right is invisible to a causal model
        scored, first = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, number in enumerate(group):
            ids[row, : len(sequences[number])] = torch.tensor(sequences[number])
            scored[row, starts[number] : len(sequences[number])] = True
            first[row, starts[number]] = True
        batches.append(_Batch(torch.tensor(group), ids, scored, first))
    return batches


def _predict(read: Tensor, weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Nll in nats of the wanted tokens [n], float32, and the likeliest tokens [n]."""
    rows = chunk_rows(len(weight))
    losses, likeliest = [], []
    for x, y in zip(read.split(rows), wanted.split(rows), strict=True):
        logits = (x @ weight.t()).float()
        losses.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return torch.cat(losses), torch.cat(likeliest)
