"""What `evaluate` finds, as its JSON has it."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, final


class Accuracy(TypedDict):
    """Right answers, the 95 % Wilson interval of their share, what guessing would reach, and every answer."""

    accuracy: float
    interval: list[float]
    chance: float
    questions: int
    answers: list[int]


class ChrF(TypedDict):
    """chrF, 0 to 100, with its 95 % bootstrap interval and sacrebleu's signature."""

    chrf: float
    interval: list[float]
    signature: str


class Translations(ChrF):
    """How many were written, and the first of them."""

    pairs: int
    written: list[dict[str, str]]


@final
class TextScores(TypedDict):
    """See the runtime's `held_out.summarize`; `nll` is in nats."""

    bits_per_byte: float
    stderr: float | None
    perplexity_per_base_token: float
    nll: float
    windows: int
    bytes: int
    base_tokens: int
    tokens: int


@final
class Answers(TypedDict):
    """Choices by summed log-likelihood, by that per byte, and as Mini-GPTs (arXiv 2312.12682) scores them."""

    sum: Accuracy
    per_byte: Accuracy
    paper: NotRequired[Accuracy]
    translations: NotRequired[Translations]


class Evaluation(TypedDict):
    """Results by task name, of the model and where asked for of its base model."""

    model: str
    domain: str | None
    runtime: dict[str, Any]
    tasks: dict[str, TextScores | Answers]
    base_model: NotRequired[Evaluation]
