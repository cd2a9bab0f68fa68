"""Tokens, neurons and KV groups under one budget, on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_build import write_corpus, write_model

from minigpt_edge.data.corpus import read_split
from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.models import base_model
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.prune.unrecovered import AFTER_RECOVERY, Shares
from minigpt_edge.prune.vocabulary.choose import choose_tokens, count_tokens, open_tokenizer
from minigpt_edge.recipe import Recipe
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    write_corpus(folder / "corpus")
    write_model(folder / "model", folder / "corpus")
    return folder


def prune(place: Path, **options: Any) -> tuple[Stage, Stage]:
    """The corpus and the prune stage."""
    given = {"calibration_tokens": 4096, **options}
    places = {"corpus": (str(place / "corpus"),), "model": str(place / "model"), "work": place / "work"}
    recipe = Recipe(**places, **given)
    with Log(quiet=True) as log:
        context = BuildContext(place / "work", recipe, base_model.resolve_model(recipe.model), log)
        text = corpus_stage(context)
        return text, prune_stage(context, text)


def tokens(stage: Stage) -> set[str]:
    data = json.loads((stage.path / "checkpoint" / "tokenizer.json").read_text())
    return set(data["model"]["vocab"])


@pytest.mark.parametrize("sparsity", [0.02, 0.3, 0.6])
def test_the_sparsity_is_met_and_estimated(place: Path, sparsity: float) -> None:
    _, made = prune(place, sparsity=sparsity)
    assert made.metrics["sparsity"] == pytest.approx(sparsity, abs=0.005)
    estimated = made.metrics["estimated"]
    before, after = estimated["before_recovery"], estimated["after_recovery"]
    assert set(before) == {"tokens", "neurons", "groups"}
    assert min(before.values()) >= 0 and after == AFTER_RECOVERY.of(before)
    assert (before["neurons"] > 0) == (set(made.metrics["widths"][1]) != {1024})


def test_a_count_decides_the_vocabulary_alone(place: Path) -> None:
    text, made = prune(place, sparsity=0.3, min_count=3)
    data = json.loads((place / "model" / "tokenizer.json").read_text())
    counts = count_tokens(open_tokenizer(data), read_split(text.path, "train"))
    kept = set(choose_tokens(data, counts, min_count=3, always=[0, 2]))
    assert tokens(made) == {word for word, index in data["model"]["vocab"].items() if index in kept}
    assert made.metrics["sparsity"] == pytest.approx(0.3, abs=0.005)


def test_terms_are_kept(place: Path, tmp_path: Path) -> None:
    from minigpt_edge.prune.context import PruneInputs
    from minigpt_edge.prune.prepare import prepare
    from minigpt_edge.prune.settings import prune_settings

    text, _ = prune(place, sparsity=0.3)
    settings = prune_settings(Recipe(corpus=("x",), sparsity=0.3, calibration_tokens=4096))
    settings = replace(settings, unrecovered=Shares(1e-9, 1.0, 1.0))  # tokens are removed first
    base = base_model.resolve_model(str(place / "model"))
    whole = open_tokenizer(json.loads((place / "model" / "tokenizer.json").read_text()))
    pieces = []
    for terms in ([], ["hadrons"]):
        inputs = PruneInputs(base.path, base.fingerprint, text.path, settings, terms=terms)
        prepare(inputs, tmp_path / str(len(terms)))
        child = json.loads((tmp_path / str(len(terms)) / "checkpoint" / "tokenizer.json").read_text())
        pieces.append(open_tokenizer(child).encode(" hadrons").tokens)
    assert pieces[1] == whole.encode(" hadrons").tokens
    assert len(pieces[0]) > len(pieces[1])


@pytest.mark.parametrize(
    "options", [{"max_size": 300_000}, {"max_params": 300_000}, {"min_speedup": 1.5}], ids=str
)
def test_limits_are_met(place: Path, options: dict[str, Any]) -> None:
    _, made = prune(place, **options)
    assert made.metrics["sparsity"] > 0 or "max_size" in options
    if "max_params" in options:
        assert 300_000 - 2 * 32 * 96 < made.metrics["parameters"]["kept"] <= 300_000


def test_without_recovery_what_heals_counts_in_full(place: Path) -> None:
    _, recovered = prune(place, sparsity=0.3)
    _, final = prune(place, sparsity=0.3, recover="no")
    assert final.metrics["vocabulary"][1] >= recovered.metrics["vocabulary"][1]
    estimated = final.metrics["estimated"]
    assert estimated["after_recovery"]["tokens"] == estimated["before_recovery"]["tokens"]
