"""Multiple choice: which continuation of a passage the model finds likeliest per byte."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.engines.engine import Engine, Fork
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.scoring.likelihood import branch_nll


@dataclass(frozen=True)
class Question:
    """A passage's beginning, continuations of it, and the index of the true one."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Encoded:
    """Token ids of a question: of the context, and of the context with each choice; the choices' bytes."""

    context: list[int]
    joined: list[list[int]]
    bytes: list[int]

    @property
    def texts(self) -> list[list[int]]:
        """Everything the engine has to hold, one at a time."""
        return [self.context, *self.joined]


def read_questions(content: Mapping[str, Any]) -> list[Question]:
    """The questions of a held-out.json, none if it has none; EdgeError if one is damaged."""
    questions = []
    try:
        for q in content.get("questions") or []:
            questions.append(Question(str(q["context"]), tuple(map(str, q["choices"])), int(q["answer"])))
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(len(questions), repr(error)) from error
    for number, question in enumerate(questions):
        if not 0 <= question.answer < len(question.choices) or len(question.choices) < 2:
            raise _damaged(number, f"answer {question.answer} of {len(question.choices)} choices")
        if not question.context or not all(question.choices):
            raise _damaged(number, "a text is empty")
    return questions


def encode_question(engine: Engine, question: Question) -> Encoded:
    return Encoded(
        engine.tokenize(question.context),
        [engine.tokenize(question.context + choice) for choice in question.choices],
        [len(choice.encode("utf-8", errors="replace")) for choice in question.choices],
    )


def choose(engine: Engine, start: int, questions: Sequence[Encoded]) -> Iterator[int]:
    """Each question's choice with the least negative log-likelihood per byte, given start and context.

    That is NLL(context + choice) - NLL(context): the tokens of both together need not part where the choice
    begins, so there are no "tokens of the choice" to add up. What all of them begin with cancels out.

    Raises:
        EdgeError: the model computes values that are not numbers.
    """
    forks = []
    for question in questions:
        shared = os.path.commonprefix(question.texts)
        forks.append(Fork([start, *shared], [text[len(shared) :] for text in question.texts]))
    for question, found in zip(questions, branch_nll(engine, forks), strict=True):
        given, *joined = (float(nll.sum()) for nll, _ in found)
        scores = [(nll - given) / size for nll, size in zip(joined, question.bytes, strict=True)]
        if not all(map(math.isfinite, scores)):
            raise EdgeError("the model computes values that are not numbers", "export the model again")
        yield scores.index(min(scores))


def summarize_choices(questions: Sequence[Question], answers: Sequence[int]) -> dict[str, Any]:
    """The share answered right with its standard error, what guessing would reach, and every answer."""
    count = len(questions)
    accuracy = sum(q.answer == chosen for q, chosen in zip(questions, answers, strict=True)) / count
    return {
        "accuracy": accuracy,
        "stderr": math.sqrt(accuracy * (1 - accuracy) / count),
        "questions": count,
        "chance": sum(1 / len(question.choices) for question in questions) / count,
        "answers": list(answers),
    }


def _damaged(number: int, why: str) -> EdgeError:
    return EdgeError(f"question {number} of the held-out file is damaged ({why})", "copy the bundle again")
