"""The held-out sample that goes with a bundle: a device scores it with the engine that it measures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigpt_edge.data.corpus import read_split
from minigpt_edge.data.windows import read_texts
from minigpt_edge_runtime.scoring.held_out import HELD_OUT as HELD_OUT

WINDOWS, QUESTIONS, CHOICES = 16, 48, 4
ROUNDS = 4  # passages that a document may be asked about, where more questions are wanted than documents
_CONTEXT, _CHOICE = 320, 120  # characters


def held_out_sample(corpus: Path) -> dict[str, Any]:
    """Windows and questions from the test split of a corpus stage; the same corpus gives the same sample.

    Returns:
        {"format", "split", "document_start", "windows": [{"text", "bytes", "base_tokens"}], "questions":
        [{"context", "choices", "answer"}]}. A question is a passage, and four texts of which one goes on
        where it ends; the others come from other places, of the same document where it is long enough.
    """
    return {
        "format": 1,
        "split": "test",
        **read_texts(corpus / "test.texts.json").content(WINDOWS),
        "questions": questions(read_split(corpus, "test"), random.Random(0), QUESTIONS),
    }


def questions(documents: Sequence[str], rng: random.Random, count: int) -> list[dict[str, Any]]:
    """At most `count` questions {"context", "choices", "answer"}: one a document, then a second from each…

    The choices beside the true one are from other places, of the same document where it is long enough.
    """
    found: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for question in _round(documents, rng, count - len(found)):
            found.setdefault(question["context"], question)
        if len(found) >= count:
            break
    return list(found.values())


def _round(documents: Sequence[str], rng: random.Random, count: int) -> list[dict[str, Any]]:
    passages = [found for text in documents if len(found := _pieces(text, rng)) > 0]
    rng.shuffle(passages)
    elsewhere = [choice for pieces in passages for _, choice in pieces]
    questions: list[dict[str, Any]] = []
    for pieces in passages[:count]:
        (context, right), *others = pieces
        wrong = [choice for _, choice in others]
        wrong += rng.sample(elsewhere, min(len(elsewhere), 4 * CHOICES))
        choices = [right]
        for choice in wrong:
            if len(choices) < CHOICES and all(choice[:20] != chosen[:20] for chosen in choices):
                choices.append(choice)
        if len(choices) == CHOICES:
            rng.shuffle(choices)
            questions.append({"context": context, "choices": choices, "answer": choices.index(right)})
    return questions


def _pieces(text: str, rng: random.Random) -> list[tuple[str, str]]:
    """Passages of a text that do not overlap, each with what follows it; the first is one at random."""
    words = [at for at, character in enumerate(text) if character.isspace() and at >= _CONTEXT]
    cuts: list[int] = []
    for at in words:
        if at + _CHOICE <= len(text) and (not cuts or at - cuts[-1] >= _CONTEXT + _CHOICE):
            cuts.append(at)
    rng.shuffle(cuts)
    return [(text[at - _CONTEXT : at], _whole_words(text[at : at + _CHOICE])) for at in cuts[:CHOICES]]


def _whole_words(text: str) -> str:
    """A text that begins with a space without its last, cut word; as it is where nothing parts its words."""
    return text.rpartition(" ")[0] or text
