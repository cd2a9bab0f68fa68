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

from minigpt_edge.evaluation.perplexity import batches
from minigpt_edge.models.archs.base import Arch
from minigpt_edge.models.chunked_loss import logit_chunks, nll
from minigpt_edge.models.forward import head_of
from minigpt_edge.models.precision import compute_dtype
from minigpt_edge.stages.device import CPU

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
        return float(self.nll.sum()) / int(self.tokens.sum())

    @property
    def log_loss(self) -> Tensor:
        """Nats per scored token of each sequence, float64."""
        return self.nll / self.tokens.cpu()

    @property
    def accuracy(self) -> float:
        """The share of sequences whose first scored token is the likeliest."""
        return float(self.right.cpu().double().mean())


class Probe:
    """Token sequences, of which a model is scored on the tokens from a start on.

    The model it is made with is the dense one. A call for another names the first block that may differ from
    it: the hidden states before that block are the dense model's. Products are in bf16 where the device
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
        self.batches = batches(sequences, starts)
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
        losses = torch.zeros(self.count, dtype=torch.float64, device=CPU)
        tokens = torch.zeros(self.count, dtype=torch.int64)
        right = torch.zeros(self.count, dtype=torch.bool)
        with torch.inference_mode():
            for batch, hidden in zip(self.batches, self._final(model, first), strict=True):
                final = self.arch.final_norm(model, hidden[:, :-1][batch.scored[:, 1:]])
                read, weight = head_of(model, final.to(self.dtype))
                chunks = logit_chunks(read, weight, batch.ids[batch.scored])
                found = [
                    (nll(logits, wanted), self._is_likeliest(logits, wanted)) for logits, wanted in chunks
                ]
                row = batch.rows[:, None].expand_as(batch.scored)[batch.scored]
                losses.index_add_(0, row.cpu(), torch.cat([loss for loss, _ in found]).cpu().double())
                tokens.index_add_(0, row, torch.ones_like(row))
                opens = batch.first[batch.scored]
                right[row[opens]] = torch.cat([likeliest for _, likeliest in found])[opens]
        return Measured(losses, tokens, right)

    def _is_likeliest(self, logits: Tensor, wanted: Tensor) -> Tensor:
        likeliest = logits.argmax(-1)
        return likeliest == wanted if self.forms is None else self.forms[likeliest] == self.forms[wanted]

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
