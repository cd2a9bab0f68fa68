"""Estimated costs against brute force on a small trained model: remove, recover, measure."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_build import write_model

from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.evaluation.perplexity import evaluate
from minigpt_edge.models import base_model
from minigpt_edge.prune.context import PruneInputs
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.prepare import prepare
from minigpt_edge.prune.result import write_pruned
from minigpt_edge.prune.settings import prune_settings
from minigpt_edge.prune.unrecovered import Shares
from minigpt_edge.recipe import Recipe
from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
from minigpt_edge.recover.recover import recover
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext

pytestmark = pytest.mark.whole
NEVER = 1e9  # the share of what is kept: it comes last
TRAINED, RECOVERED = 80_000, 12_288  # tokens
SPARSITY = {"tokens": 0.05, "neurons": 0.2}


def write_text(folder: Path) -> Path:
    """Documents of made-up words by Zipf's law, each word most often followed by one of three."""
    chance, folder = random.Random(0), folder / "corpus"
    folder.mkdir()
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = sorted({"".join(chance.choices(syllables, k=chance.randint(2, 3))) for _ in range(600)})
    chance.shuffle(words)
    shares = [1 / rank for rank in range(1, len(words) + 1)]
    after = {word: chance.choices(words, shares, k=3) for word in words}
    for index in range(160):
        made = [chance.choice(words)]
        for _ in range(250):
            likely = chance.random() < 0.7
            made.append(chance.choice(after[made[-1]]) if likely else chance.choices(words, shares)[0])
        lines = [" ".join(made[at : at + 12]) for at in range(0, len(made), 12)]
        (folder / f"{index:03}.txt").write_text("\n".join(lines))
    return folder


class Place:
    """A trained model, its corpus stage, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        from transformers import LlamaConfig

        config = LlamaConfig(
            hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=True,
        )  # fmt: skip
        self.folder, corpus = folder, write_text(folder)
        write_model(folder / "random", corpus, config=config)
        self.recipe = Recipe(corpus=(str(corpus),), model=str(folder / "random"), calibration_tokens=16_384)
        with Log(quiet=True) as log:
            base = base_model.resolve_model(self.recipe.model)
            self.text = corpus_stage(BuildContext(folder / "work", self.recipe, base, log)).path
        self.train(base.path, "model", TRAINED, lr=3e-3)

    def train(self, checkpoint: Path, name: str, tokens: int, lr: float | None = None) -> float:
        """Fine-tune a checkpoint; the result's validation loss."""
        config = RecoverConfig(
            tokens,
            lr=lr,
            embedding_rate=1.0,  # most of so small a model is its embedding
            threads=1,
            evaluations=1,
            sequence_length=256,
            step_tokens=512,
        )
        recover(checkpoint, self.folder / name, TrainingTexts.of(self.text), config)
        return self.loss(self.folder / name)

    def loss(self, checkpoint: Path) -> float:
        """Nats per base token of the validation windows."""
        return math.log(
            evaluate(checkpoint, self.text / "validation.texts.json")["perplexity_per_base_token"]
        )

    def prune(self, kind: str) -> tuple[Path, dict[str, Any]]:
        """The checkpoint without units of one kind, and what that was estimated to cost."""
        shares = {"tokens": NEVER, "neurons": NEVER, "groups": NEVER} | {kind: 1.0}
        settings = prune_settings(replace(self.recipe, sparsity=SPARSITY[kind]))
        settings = replace(settings, unrecovered=Shares(**shares))
        inputs = PruneInputs(self.folder / "model", "model", self.text, settings)
        out = self.folder / kind
        context = prepare(inputs, out)
        metrics = write_pruned(context, pruner_of(settings).apply(context))
        return out / "checkpoint", metrics["estimated"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("brute"))


def test_costs_are_those_that_are_measured(place: Place) -> None:
    """To a third for tokens; neurons, of which this model needs few, cost next to nothing by both."""
    dense = place.loss(place.folder / "model")
    tuned = place.train(place.folder / "model", "tuned", RECOVERED)
    estimated, before, after = dict[str, float](), dict[str, float](), dict[str, float]()
    for kind in SPARSITY:
        checkpoint, costs = place.prune(kind)
        before[kind] = place.loss(checkpoint) - dense
        after[kind] = place.train(checkpoint, f"recovered-{kind}", RECOVERED) - tuned
        estimated[kind] = costs["before_recovery"][kind]
        assert sum(costs["before_recovery"].values()) == pytest.approx(estimated[kind], abs=1e-3)
    assert estimated["tokens"] == pytest.approx(before["tokens"], rel=0.34)
    assert estimated["neurons"] == pytest.approx(before["neurons"], abs=0.02)
    assert after["tokens"] < 0.95 * before["tokens"], "recovery wins some of it back"
    for measured in (before, after):
        assert measured["neurons"] < measured["tokens"]
