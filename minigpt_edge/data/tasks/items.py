"""Multiple-choice items, and how the rows of published question sets become some.

Prompts are those of lm-evaluation-harness without examples (0-shot), so that figures compare.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Item:
    """A question: texts to go on from, continuations, and the index of the right pair.

    Attributes:
        contexts: one for all choices, or one each.
        choices: one each, or one for all contexts; they begin with the space that parts them.
    """

    contexts: tuple[str, ...]
    choices: tuple[str, ...]
    answer: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        count = max(len(self.contexts), len(self.choices))
        contexts = self.contexts * count if len(self.contexts) == 1 else self.contexts
        choices = self.choices * count if len(self.choices) == 1 else self.choices
        return list(zip(contexts, choices, strict=True))


def boolq(row: Mapping[str, Any]) -> Item:
    """Answer a question about a passage with yes or no (arXiv 1905.10044)."""
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    answer = row["answer"] if "answer" in row else row["label"]
    return Item((prompt,), (" no", " yes"), int(str(answer).lower() in ("true", "1")))


def rte(row: Mapping[str, Any]) -> Item:
    """Whether a sentence follows from another (GLUE, arXiv 1804.07461)."""
    prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
    return Item((prompt,), (" True", " False"), int(row["label"]))


def hellaswag(row: Mapping[str, Any]) -> Item:
    """How a scene goes on (arXiv 1905.07830)."""
    context = f"{row['activity_label']}: {row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    endings = tuple(" " + _without_marks(ending) for ending in row["endings"])
    return Item((_without_marks(context),), endings, int(row["label"]))


def _without_marks(text: str) -> str:
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def winogrande(row: Mapping[str, Any]) -> Item:
    """Which of two names a sentence means (arXiv 1907.10641): its end, given either name."""
    before, _, after = str(row["sentence"]).partition("_")
    contexts = (before + row["option1"], before + row["option2"])
    return Item(contexts, (" " + after.strip(),), int(row["answer"]) - 1)


def arc(row: Mapping[str, Any]) -> Item:
    """Science questions of schools (arXiv 1803.05457)."""
    if "query" in row:
        return _cloze(str(row["query"]), row["choices"], int(row["gold"]))
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    return _cloze(f"Question: {row['question']}\nAnswer:", texts, labels.index(row["answerKey"]))


def openbookqa(row: Mapping[str, Any]) -> Item:
    """Elementary science that needs a known fact (arXiv 1809.02789)."""
    if "query" in row:
        stem = str(row["query"]).removeprefix("Question: ").removesuffix("\nAnswer:")
        return _cloze(stem, row["choices"], int(row["gold"]))
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    return _cloze(row["question_stem"], texts, labels.index(row["answerKey"]))


def medmcqa(row: Mapping[str, Any]) -> Item:
    """Entrance examinations of medical schools (arXiv 2203.14371)."""
    texts = [row[name] for name in ("opa", "opb", "opc", "opd")]
    return _letters(f"Question: {row['question']}\nChoices:", texts, int(row["cop"]))


def mmlu(row: Mapping[str, Any]) -> Item:
    """Examinations of a subject (arXiv 2009.03300)."""
    subject = str(row["subject"]).replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return _letters(head + str(row["question"]).strip(), row["choices"], int(row["answer"]))


def _cloze(prompt: str, choices: Any, answer: int) -> Item:
    return Item((prompt,), tuple(f" {choice}" for choice in choices), answer)


def _letters(question: str, choices: Any, answer: int) -> Item:
    """Choices listed under letters; the letter is what is to be said."""
    letters = "ABCDEFGH"[: len(choices)]
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return Item((f"{question}{listed}\nAnswer:",), tuple(f" {letter}" for letter in letters), answer)
