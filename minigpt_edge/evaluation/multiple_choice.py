"""Multiple choice under any engine: accuracy with its interval, beside what guessing would reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from minigpt_edge.data.tasks.items import Item
from minigpt_edge.evaluation.results import Accuracy, Answers
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.scoring.choices import encode_pair, score_pairs
from minigpt_edge_runtime.scoring.likelihood import token_nll

CONFIDENCE = 0.95
SCORINGS = ("sum", "per_byte", "paper")


def answer(
    engine: Engine,
    items: Sequence[Item],
    *,
    document_start: str | None = None,
    paper: bool = False,
    on_item: Callable[[int, int], None] = lambda done, total: None,
) -> Answers:
    """Answer every question.

    Args:
        engine: opened with `logits_all`.
        document_start: the token that precedes every text; the engine's own choice without.
        paper: also choose as Mini-GPTs (arXiv 2312.12682) does, which takes a pass over every whole text.
        on_item: called with (questions done, questions).
    """
    start = engine.document_start(document_start)
    chosen: dict[str, list[int]] = {name: [] for name in SCORINGS if paper or name != "paper"}
    questions = [[encode_pair(engine, start, *pair) for pair in item.pairs] for item in items]
    for number, (item, scored) in enumerate(zip(items, score_pairs(engine, questions), strict=True), 1):
        likelihoods = [likelihood for likelihood, _ in scored]
        sizes = [max(1, len(choice.lstrip(" ").encode())) for _, choice in item.pairs]  # it may be blank
        chosen["sum"].append(_best(likelihoods))
        chosen["per_byte"].append(
            _best([value / size for value, size in zip(likelihoods, sizes, strict=True)])
        )
        on_item(number, len(items))
    for pairs in questions if paper else []:
        texts = [[*pair.context, *pair.continuation][-engine.context_length :] for pair in pairs]
        chosen["paper"].append(_best([-_paper_score(engine, text) for text in texts]))
    return cast("Answers", {name: summarize(items, answers) for name, answers in chosen.items()})


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _paper_score(engine: Engine, text: Sequence[int]) -> float:
    """exp(mean nll) of question and choice together ÷ number of tokens: the lowest wins.

    Dividing by the length once more favours long choices; it is here to compare with the paper's figures.
    """
    nll = token_nll(engine, text)
    return math.exp(min(float(nll.mean()), 700.0)) / len(text)


def summarize(items: Sequence[Item], answers: Sequence[int]) -> Accuracy:
    """What answers (numbers of the chosen ones) are worth."""
    from scipy.stats import binomtest

    right = sum(item.answer == answer for item, answer in zip(items, answers, strict=True))
    interval = binomtest(right, len(items)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "accuracy": right / len(items),
        "interval": [float(interval.low), float(interval.high)],
        "chance": sum(1 / len(item.pairs) for item in items) / len(items),
        "questions": len(items),
        "answers": list(answers),
    }
