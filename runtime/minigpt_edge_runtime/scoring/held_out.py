"""Held-out text under a model file: the likelihood of windows, and the choices it makes in questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.scoring.likelihood import token_nll
from minigpt_edge_runtime.scoring.questions import (
    Question,
    choose,
    encode_question,
    read_questions,
    summarize_choices,
)

HELD_OUT = "held-out.json"  # a bundle's own sample


@dataclass(frozen=True)
class Window:
    """A held-out text with its size in bytes and in tokens of the base model."""

    text: str
    bytes: int
    base_tokens: int


@dataclass(frozen=True)
class HeldOut:
    """Windows, questions (none in a texts.json), the text of the token before each, and the split's name."""

    windows: list[Window]
    questions: list[Question]
    document_start: str | None
    split: str | None


def read_held_out(source: Path | Mapping[str, Any]) -> HeldOut:
    """A texts.json of the corpus stage, or a bundle's held-out.json.

    Args:
        source: the file, or its content: {"document_start", "split", "windows": [{"text", "bytes",
            "base_tokens"}], "questions" (may be missing): [{"context", "choices", "answer"}]}.

    Raises:
        EdgeError: it is missing, something else, empty, or a window or question is damaged.
    """
    content = read_json(source) if isinstance(source, Path) else source
    hint = "make the text file again with the corpus stage"
    try:
        windows = [Window(str(w["text"]), int(w["bytes"]), int(w["base_tokens"])) for w in content["windows"]]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise EdgeError(f"this is not a texts file: {error!r} in its windows", hint) from error
    if not windows:
        raise EdgeError("the texts file has no windows", hint)
    for number, window in enumerate(windows):
        size = len(window.text.encode("utf-8", errors="surrogatepass"))
        if size != window.bytes or not window.text or window.base_tokens < 1:
            raise EdgeError(
                f"window {number} of the texts file is damaged ({size} bytes, not {window.bytes})", hint
            )
    return HeldOut(windows, read_questions(content), content.get("document_start"), content.get("split"))


def score_held_out(
    path: Path, held_out: HeldOut, threads: int, progress: Callable[[str, int, int], None] | None = None
) -> dict[str, Any]:
    """Score each window on its own, and each question.

    Returns:
        "per_window" (nll in nats, tokens, bytes, base_tokens), "multiple_choice" (None without questions, see
        `questions.summarize_choices`) and "runtime", the engine's description.

    Raises:
        EdgeError: a text is longer than the context, or the vocabulary loses bytes.
    """
    windows, questions = held_out.windows, held_out.questions
    with open_engine(path, 32, threads) as engine:  # tokenizing alone needs no large cache
        start = engine.document_start(held_out.document_start)
        texts = [_exact_tokens(engine, number, window) for number, window in enumerate(windows)]
        encoded = [encode_question(engine, question) for question in questions]
    longest = 1 + max(len(tokens) for tokens in texts + [text for one in encoded for text in one.texts])
    scored, answers = [], []
    steps = len(windows) + len(questions)
    with open_engine(path, longest, threads, logits_all=True) as engine:
        for window, tokens in zip(windows, texts, strict=True):
            scored.append(_scored(engine, start, tokens, window))
            if progress is not None:
                progress("windows", len(scored), steps)
        for answer in choose(engine, start, encoded):
            answers.append(answer)
            if progress is not None:
                progress("questions", len(scored) + len(answers), steps)
        runtime = dict(engine.description())
    choices = summarize_choices(questions, answers) if questions else None
    return {"per_window": scored, "multiple_choice": choices, "runtime": runtime}


def score_window(engine: Engine, start: int, number: int, window: Window) -> dict[str, Any]:
    """A window's nll in nats, tokens, bytes and base_tokens; the text begins after the token `start`.

    What is longer than the context is scored in pieces, each after `start`: a vocabulary trimmed to a domain
    makes many tokens of another's text.

    Raises:
        EdgeError: the vocabulary loses bytes, or the model computes values that are not numbers.
    """
    tokens, room = _exact_tokens(engine, number, window), engine.context_length - 1
    pieces = [tokens[at : at + room] for at in range(0, len(tokens), room)]
    scored = [_scored(engine, start, piece, window) for piece in pieces]
    return {**scored[0], "nll": sum(piece["nll"] for piece in scored), "tokens": len(tokens)}


def _scored(engine: Engine, start: int, tokens: Sequence[int], window: Window) -> dict[str, Any]:
    nll = float(token_nll(engine, [start, *tokens]).sum())
    if not math.isfinite(nll):
        raise EdgeError("the model computes values that are not numbers", "export the model again")
    return {"nll": nll, "tokens": len(tokens), "bytes": window.bytes, "base_tokens": window.base_tokens}


def summarize(scored: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Totals over windows.

    `stderr` is bits_per_byte's standard error over windows (linearised ratio of sums); None for one window.
    """
    nll, size = sum(w["nll"] for w in scored), sum(w["bytes"] for w in scored)
    base_tokens, count = sum(w["base_tokens"] for w in scored), len(scored)
    rate = nll / size
    squares = sum((w["nll"] - rate * w["bytes"]) ** 2 for w in scored)
    stderr = math.sqrt(squares * count / (count - 1)) / size / math.log(2) if count > 1 else None
    return {
        "bits_per_byte": rate / math.log(2),
        "stderr": stderr,
        "perplexity_per_base_token": math.exp(min(nll / base_tokens, 700.0)),
        "nll": nll,
        "windows": count,
        "bytes": size,
        "base_tokens": base_tokens,
        "tokens": sum(w["tokens"] for w in scored),
    }


def _exact_tokens(engine: Engine, number: int, window: Window) -> list[int]:
    tokens = engine.tokenize(window.text)
    if engine.detokenize(tokens) != window.text.encode("utf-8"):
        raise EdgeError(
            f"the model's vocabulary loses bytes of window {number}, so its score would mean nothing",
            "export the model again with every byte in its vocabulary",
        )
    return tokens
