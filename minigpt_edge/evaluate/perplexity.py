"""Bits per byte of a checkpoint on an evaluation text file (`*.texts.json`), with torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.text import open_tokenizer

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import nn

BATCH_TOKENS = 4096  # padded tokens scored together


def read_texts(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """The document-start token's text and the windows of an evaluation text file.

    Raises:
        EdgeError: the file is missing, damaged or has no windows.
    """
    data = read_json(path)
    try:
        windows = [{k: window[k] for k in ("text", "bytes", "base_tokens")} for window in data["windows"]]
        start = str(data["document_start"])
    except (KeyError, TypeError) as error:
        raise EdgeError(f"{path} is not an evaluation text file", "make the corpus again") from error
    if not windows:
        raise EdgeError(f"{path} has no windows", "make the corpus again with more text")
    return start, windows


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint, neither cutting nor padding; EdgeError if it is missing or damaged."""
    try:
        return open_tokenizer(directory / "tokenizer.json")
    except EdgeError as error:
        raise EdgeError(error.message, "the checkpoint is incomplete or damaged: make it again") from error


def encode(tokenizer: Tokenizer, document_start: str, texts: list[str]) -> list[list[int]]:
    """Token ids of each text after one document-start token.

    Raises:
        EdgeError: the vocabulary lacks the document-start token.
    """
    start = tokenizer.token_to_id(document_start)
    if start is None:
        raise EdgeError(f"the vocabulary has no document-start token {document_start!r}")
    return [[start, *e.ids] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


def sum_nll(model: nn.Module, sequences: list[list[int]]) -> float:
    """Summed negative log-likelihood in nats of all tokens but each sequence's first.

    Args:
        model: a causal language model with `base_model` and output embeddings.
        sequences: token ids; each is scored on its own, under bf16 autocast where the processor has bf16.
    """
    import torch

    from minigpt_edge.chunked_loss import chunked_nll

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


def hidden_states(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """What the head reads [batch, s, width] for token ids [batch, s], in bf16 where the processor has it."""
    import torch

    from minigpt_edge.precision import compute_dtype

    dtype = compute_dtype()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
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


def _batches(sequences: list[list[int]]) -> list[list[list[int]]]:
    """Sequences of similar length together, at most BATCH_TOKENS padded tokens (or one sequence) each."""
    batches: list[list[list[int]]] = []
    for sequence in sorted((s for s in sequences if len(s) > 1), key=len, reverse=True):
        if not batches or len(batches[-1][0]) * (len(batches[-1]) + 1) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    return batches


def summary(nll: float, windows: list[dict[str, Any]]) -> dict[str, float]:
    """bits_per_byte and perplexity_per_base_token of a summed nll in nats, with the sums they come from."""
    size, base = sum(w["bytes"] for w in windows), sum(w["base_tokens"] for w in windows)
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
    from minigpt_edge import attention
    from minigpt_edge.checkpoint import is_large, load_model

    start, windows = read_texts(texts)
    sequences = encode(read_tokenizer(checkpoint), start, [w["text"] for w in windows])
    model = load_model(checkpoint, lazy=is_large(checkpoint))
    attention.use_in(model)
    check_context(model, sequences)
    return summary(sum_nll(model, sequences), windows)


def check_context(model: nn.Module, sequences: list[list[int]]) -> None:
    """EdgeError if a sequence is longer than the model's context."""
    limit = int(model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    longest = max(len(sequence) for sequence in sequences)
    if longest > limit:
        raise EdgeError(
            f"an evaluation window has {longest} tokens, the model's context only {limit}",
            "make the corpus again with shorter windows",
        )
