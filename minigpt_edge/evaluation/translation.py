"""Translation under any engine: the right one of four, and chrF of what the model writes itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from minigpt_edge.data.pairs import prompt
from minigpt_edge.data.tasks.items import Item
from minigpt_edge.evaluation.results import ChrF, Translations
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.generate.generate import Generation, Session
from minigpt_edge_runtime.generate.sampling import Sampling

CHOICES = 4
WRITTEN_TOKENS = 192  # of a translation at most
BOOTSTRAP = 1000


def items(pairs: Sequence[tuple[str, str]], count: int) -> list[Item]:
    """Questions: a sentence, its translation, and those of three others, drawn by a fixed seed."""
    rng = random.Random(0)
    targets = [target for _, target in pairs]
    found = []
    for source, right in rng.sample(pairs, min(count, len(pairs))):
        others = [
            target for target in dict.fromkeys(rng.sample(targets, min(len(targets), 20))) if target != right
        ]
        choices = [right, *others[: CHOICES - 1]]
        if len(choices) < CHOICES:
            continue
        rng.shuffle(choices)
        found.append(Item((prompt(source),), tuple(f" {c}" for c in choices), choices.index(right)))
    return found


def translate(
    engine: Engine,
    pairs: Sequence[tuple[str, str]],
    *,
    document_start: str | None = None,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
) -> Translations:
    """chrF (arXiv W15-3049, through sacrebleu) of greedy translations."""
    start, session = engine.document_start(document_start), Session(engine)
    greedy = Sampling(temperature=0, repeat_penalty=1.0)
    written = []
    for number, (source, _) in enumerate(pairs, 1):
        tokens = [start, *engine.tokenize(prompt(source))]
        room = min(WRITTEN_TOKENS, engine.context_length - len(tokens))
        answer = "".join(Generation(session, tokens, greedy, room, ("\n",))) if room > 0 else ""
        written.append(answer.strip())
        on_pair(number, len(pairs))
    return {
        **chrf(written, [target for _, target in pairs]),
        "pairs": len(pairs),
        "written": [
            {"source": source, "target": target, "written": mine}
            for (source, target), mine in list(zip(pairs, written, strict=True))[:5]
        ],
    }


def chrf(written: Sequence[str], targets: Sequence[str]) -> ChrF:
    """Of what was written against the targets."""
    from sacrebleu.metrics import CHRF

    class PlainCHRF(CHRF):
        """The bootstrap averages numpy's floats and plain ones (for no match at all), which fails."""

        def _compute_f_score(self, statistics: list[int]) -> float:
            return float(super()._compute_f_score(statistics))

    metric = PlainCHRF()
    score: Any = metric.corpus_score(written, [targets], n_bootstrap=BOOTSTRAP)
    return {
        "chrf": score.score,
        "interval": [max(0.0, score._mean - score._ci), min(100.0, score._mean + score._ci)],
        "signature": str(metric.get_signature()),
    }
