"""From token ids to hidden states and the head that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import nn


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, neither cutting nor padding; EdgeError if it is missing or damaged."""
    return open_tokenizer(directory / TOKENIZER, "the checkpoint is incomplete or damaged: make it again")


def encode(tokenizer: Tokenizer, document_start: str, texts: list[str]) -> list[list[int]]:
    """Token ids of each text after one document-start token.

    Raises:
        EdgeError: the vocabulary lacks the document-start token.
    """
    start = tokenizer.token_to_id(document_start)
    if start is None:
        raise EdgeError(f"the vocabulary has no document-start token {document_start!r}")
    return [[start, *e.ids] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def load_fast(directory: Path, *, lazy: bool = False) -> nn.Module:
    """The model as `checkpoint.load_model` gives it, attending by `attention`."""
    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import load_model

    model = load_model(directory, lazy=lazy)
    attention.use_in(model)
    return model


def hidden_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the head reads [batch, s, width] for token ids [batch, s], in bf16 where the device has it."""
    from minigpt_edge.models.precision import autocast, compute_dtype

    dtype = compute_dtype()
    with autocast(dtype):
        body: Any = model.base_model
        return body(input_ids=ids, use_cache=False).last_hidden_state.to(dtype)


def head_of(model: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head multiplies: hidden states [..., width] and its weight [vocabulary, width].

    A bias becomes a column of the weight, and 1 a column of the hidden states.
    """
    import torch

    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is None:
        return hidden, head.weight
    ones = hidden.new_ones(*hidden.shape[:-1], 1)
    bias = head.bias[:, None].to(head.weight.dtype)
    return torch.cat((hidden, ones), -1), torch.cat((head.weight, bias), 1)


def check_context(model: nn.Module, sequences: list[list[int]]) -> None:
    """EdgeError if a sequence is longer than the model's context."""
    limit = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    longest = max(len(sequence) for sequence in sequences)
    if longest > limit:
        raise EdgeError(
            f"an evaluation window has {longest} tokens, the model's context only {limit}",
            "make the corpus again with shorter windows",
        )
