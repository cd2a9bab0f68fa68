"""Translation under any engine: the right one of four, and chrF of what the model writes itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from minigpt_edge.pairs import prompt
from minigpt_edge.tasks.items import Item
from minigpt_edge_runtime.engine import Engine
from minigpt_edge_runtime.generate import Generation, Session
from minigpt_edge_runtime.sampling import Sampling

CHOICES = 4
WRITTEN_TOKENS = 96  # of a translation at most
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
) -> dict[str, Any]:
    """chrF (arXiv W15-3049, through sacrebleu) of greedy translations, with its 95 % bootstrap interval.

    Returns:
        {"chrf", "interval" (0 to 100), "pairs", "signature", "written": the first translations}.
    """
    from sacrebleu.metrics import CHRF

    start, session = engine.document_start(document_start), Session(engine)
    greedy = Sampling(temperature=0, repeat_penalty=1.0)
    written = []
    for number, (source, _) in enumerate(pairs, 1):
        tokens = [start, *engine.tokenize(prompt(source))]
        room = min(WRITTEN_TOKENS, engine.context_length - len(tokens))
        answer = "".join(Generation(session, tokens, greedy, room, ("\n",))) if room > 0 else ""
        written.append(answer.strip())
        on_pair(number, len(pairs))
    metric = CHRF()
    score: Any = metric.corpus_score(written, [[target for _, target in pairs]], n_bootstrap=BOOTSTRAP)
    middle, half = float(score._mean), float(score._ci)  # numpy's own floats, which JSON does not know
    return {
        "chrf": float(score.score),
        "interval": [middle - half, middle + half],
        "pairs": len(pairs),
        "signature": str(metric.get_signature()),
        "written": [
            {"source": source, "target": target, "written": mine}
            for (source, target), mine in list(zip(pairs, written, strict=True))[:5]
        ],
    }
