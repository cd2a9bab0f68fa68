"""Every method and every budget through the command line, on a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_build import write_corpus, write_model

from minigpt_edge.cli import cli
from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.prune.methods.registry import METHODS
from minigpt_edge.prune.settings import check_recipe
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge_runtime.errors import EdgeError, UsageError

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and corpus/, and the work folder of all builds of this module."""
    folder = tmp_path_factory.mktemp("methods")
    write_corpus(folder / "corpus")
    write_model(folder / "model", folder / "corpus")
    return folder


def recipe(place: Path, **options: Any) -> Recipe:
    given = {"calibration_tokens": 4096, "min_count": 1, "recover": "no", "baseline": False, **options}
    places = {"corpus": (str(place / "corpus"),), "model": str(place / "model"), "work": place / "work"}
    return Recipe(**{**places, **given})


def prune(place: Path, **options: Any) -> dict[str, Any]:
    """The prune stage's metrics, with "checkpoint", its directory."""
    from minigpt_edge.models import base_model
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.context import BuildContext

    asked = recipe(place, **options)
    with Log() as log:
        base = base_model.resolve_model(asked.model)
        context = BuildContext(place / "work", asked, base, log)
        stage = prune_stage(context, corpus_stage(context))
    return {**stage.metrics, "checkpoint": stage.path / "checkpoint"}


def build(place: Path, *options: str) -> Result:
    small = ["--calibration-tokens", "4096", "--min-count", "1", "--threads", "1", "--no-baseline"]
    given = [
        "--model",
        str(place / "model"),
        "--corpus",
        str(place / "corpus"),
        "--work",
        str(place / "work"),
    ]
    return CliRunner().invoke(cli, ["build", *given, *small, *options], catch_exceptions=False)


def test_methods_are_listed_with_their_papers() -> None:
    shown = CliRunner().invoke(cli, ["methods"]).output.splitlines()
    assert [line.split()[0] for line in shown] == list(METHODS)
    assert all("arXiv" in line for line in shown)


STRUCTURED = [name for name, method in METHODS.items() if "structured" in method.patterns]


@pytest.mark.parametrize("method", STRUCTURED)
def test_structured_methods_meet_the_sparsity(place: Path, method: str) -> None:
    made = prune(place, method=method, sparsity=0.3)
    assert made["sparsity"] == pytest.approx(0.3, abs=0.014)  # half a step of all blocks, in a model so small
    assert all(width % 32 == 0 for width in made["widths"][1])
    assert made["quality"]["bits_per_byte"] > 0


def test_the_vocabulary_may_stay_whole(place: Path) -> None:
    made = prune(place, method="wanda", sparsity=0.5, min_count=0)
    assert made["vocabulary"][0] == made["vocabulary"][1]
    assert set(made["kv_groups"][1]) == {1}  # its share of the blocks is over a half
    assert made["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_any_score_can_be_refitted(place: Path) -> None:
    plain = prune(place, method="magnitude", sparsity=0.4)
    refitted = prune(place, method="magnitude", sparsity=0.4, refit=True)
    assert plain["sparsity"] == refitted["sparsity"]
    assert not any(plain["held_out_errors"]) and any(refitted["held_out_errors"])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_masks_zero_and_remove_nothing(place: Path, method: str, pattern: str) -> None:
    made = prune(place, method=method, pattern=pattern, sparsity=0.5)
    assert made["zeros"] == pytest.approx(0.5, abs=1e-3)
    assert made["sparsity"] == 0


def test_thresholds_keep_less_the_higher_they_are(place: Path) -> None:
    found = [prune(place, method="contextual", threshold=epsilon) for epsilon in (0.0, 3e-3, 1e3)]
    assert found[0]["widths"][1] == [1024] * 4
    assert found[2]["widths"][1] == [32] * 4 and found[2]["kv_groups"][1] == [1] * 4
    sizes = [made["parameters"]["kept"] for made in found]
    assert sizes[0] >= sizes[1] > sizes[2]
    rare = prune(place, method="contextual", threshold=0.0, embedding_threshold=1e-3)
    assert rare["vocabulary"][1] < found[0]["vocabulary"][1]


def test_blocks_go_whole(place: Path) -> None:
    made = prune(place, method="blocks", sparsity=0.5)
    config = json.loads((made["checkpoint"] / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 - len(made["removed_blocks"]) == len(made["widths"][1])
    assert made["sparsity"] == pytest.approx(0.5, abs=0.13)  # half a block is an eighth


def test_laser_keeps_two_small_matrices_for_onnx(place: Path) -> None:
    done = build(
        place, "--method", "laser", "--reductions", "1:up:0.2,3:gate:0.2", "--no-recover",
        "--target", "onnx-fp32", "--target", "gguf-f16", "--out", str(place / "laser"), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    onnx, gguf = (model["parameters"] for model in report["models"])
    assert onnx < gguf == report["base_model"]["parameters"]


def test_laser_searches_where_nothing_is_named(place: Path) -> None:
    made = prune(place, method="laser")
    assert made["score"]["reduced"] >= made["score"]["dense"]
    assert made["best_single"].count(":") == 2


def test_lora_recovery_keeps_the_shape(place: Path) -> None:
    done = build(
        place, "--sparsity", "0.3", "--lora-rank", "4", "--recover-tokens", "8192", "--target", "gguf-q8",
        "--out", str(place / "lora"), "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["recovery"]["lora_rank"] == 4
    assert report["models"][0]["parameters"] == report["sparsity"]["parameters_after"]


@pytest.mark.parametrize("target", ["gguf-q8", "gguf-q4"])
def test_max_size_is_met_and_never_exceeded(place: Path, target: str) -> None:
    limit = 420_000 if target == "gguf-q8" else 300_000
    options = ("--max-size", str(limit), "--target", target, "--no-recover", "--out", str(place / target))
    planned = build(place, *options, "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    predicted = json.loads(planned.stdout)["targets"][target]["bytes"]
    assert not (place / target).exists()
    done = build(place, *options, "--json")
    assert done.exit_code == 0, done.output
    size = json.loads(done.stdout)["models"][0]["bytes"]
    step = 4 * 3 * 32 * 32  # one width step is large beside a model as small as this
    assert limit - step < size <= limit
    assert predicted <= limit and (
        target == "gguf-q4" or abs(size - predicted) < 600
    )  # a mix fills what is left


def test_a_dry_run_counts_the_biases_that_come(place: Path) -> None:
    planned = build(place, "--method", "flap", "--sparsity", "0.3", "--dry-run", "--json")
    made = prune(place, method="flap", sparsity=0.3)
    assert json.loads(planned.stdout)["parameters"] == made["parameters"]


def test_what_was_asked_for_is_reported(place: Path) -> None:
    from minigpt_edge.recipe import PAPER_SPARSITY
    from minigpt_edge.report.build_report import BuildReport
    from minigpt_edge.report.tables import tables
    from minigpt_edge.ship.make_report import sparsity_facts

    shrunk = {
        "sparsity": 0.4, "parameters": {"dense": 10, "kept": 6}, "vocabulary": [10, 6],
        "widths": [64, [32]], "kv_groups": [2, [1]],
    }  # fmt: skip
    for options, asked, words in (
        ({}, PAPER_SPARSITY, "41.88 % of the parameters removed"),
        ({"method": "wanda", "pattern": "2:4"}, 0.5, "50.00 % of the blocks' weights zero"),
        ({"max_params": 60_000_000}, None, "at most 60,000,000 parameters"),
        ({"max_size": 40_000_000}, None, "a file of at most 40,000,000 bytes"),
        ({"method": "laser"}, None, ""),
        ({"plan": Path("plan.json"), "min_count": None}, None, ""),
    ):
        facts = sparsity_facts(recipe(place, **options), shrunk)
        (table,) = tables(BuildReport(name="x", models=(), sparsity=facts))
        assert facts.asked == asked and words in table.note and bool(words) == bool(table.note)


def test_max_params_and_min_speedup_are_met(place: Path) -> None:
    counted = prune(place, max_params=300_000)
    assert 300_000 - 3072 <= counted["parameters"]["kept"] <= 300_000
    planned = build(place, "--min-speedup", "1.5", "--target", "gguf-q8", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "1.5" in planned.stdout and "kv groups" in planned.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.3, "max_size": 10_000}, "both say"),
        ({"threshold": 0.1}, "--threshold does nothing with least_squares"),
        ({"method": "sparsegpt", "pattern": "structured"}, "no pattern"),
        ({"method": "wanda", "pattern": "2:4", "widths": "equal"}, "--widths does nothing with wanda"),
        ({"refit": False}, "always refits"),
        ({"widths": "global"}, "no cut over all"),
        ({"method": "laser", "recover": "tokens"}, "undo"),
        ({"method": "laser", "sparsity": 0.3}, "--sparsity does nothing with laser"),
        ({"reductions": "1:up:0.5"}, "--reductions does nothing"),
        ({"max_size": 10_000, "targets": ("onnx-int4",)}, "GGUF"),
        ({"source": "hub"}, "--source does nothing with --corpus"),
        ({"corpus": (), "domain": "law", "text_column": "text"}, "--text-column does nothing with --domain"),
        ({"lora_rank": 4}, "--lora-rank does nothing with --no-recover"),
        ({"method": "wanda", "pattern": "2:4", "keep_tokens": Path("terms")}, "--keep-tokens does nothing"),
        ({"method": "laser", "keep_tokens": Path("terms")}, "--keep-tokens does nothing"),
        *(
            ({"plan": Path("plan.json"), "min_count": None, **given}, "does nothing with --plan")
            for given in (
                {"sparsity": 0.3},
                {"threshold": 0.1, "method": "contextual"},
                {"max_params": 10_000},
                {"min_speedup": 2.0},
                {"widths": "equal"},
                {"keep_tokens": Path("terms")},
                {"min_count": 3},
            )
        ),
    ],
)
def test_what_contradicts_itself_is_refused(place: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_recipe(recipe(place, **options))


def test_a_limit_that_is_too_small_says_so(place: Path) -> None:
    with pytest.raises(EdgeError, match="smallest blocks"):
        prune(place, max_size=1000)


def test_help_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from minigpt_edge.cli import cli\n"
        "CliRunner().invoke(cli, ['build', '--help']); CliRunner().invoke(cli, ['methods'])\n"
        "print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
