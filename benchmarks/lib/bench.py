"""One model and corpus whose stages all experiments share with `minigpt-edge build`.

This is the one place where benchmarks take the pipeline apart: an experiment varies a step on a shared base.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.results import RESULTS, write_result
from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.prune.settings import WINDOW
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge.recover.stage import CODE as RECOVER_CODE
from minigpt_edge.recover.stage import recover_stage
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge.stages.parallel import all_cores
from minigpt_edge.stages.stage import StageSpec, run_stage
from minigpt_edge_runtime.files import sha256_file

PUBLISHED_TOKENS = 32_768  # calibration tokens of methods that only score
MEASURE_CODE = ("minigpt_edge.evaluation", "minigpt_edge_runtime")
Parts = dict[str, Callable[["Bench"], list[dict[str, Any]]]]


@dataclass
class Bench:
    """One model and corpus with the stages that all runs share."""

    work: Path
    base: Any
    text: Any
    recipe: Any
    log: Any
    dense: Any

    def context(self, base: Any = None, **options: Any) -> BuildContext:
        """What a stage is given: this recipe with other options, and this base model or another."""
        recipe = dataclasses.replace(self.recipe, **options)
        return BuildContext(self.work, recipe, base or self.base, self.log)

    def prune(self, **options: Any) -> Any:
        """The prune stage of the recipe with these options; EdgeError if the method can't do it."""
        return prune_stage(self.context(**{"recover": "tokens", **options}), self.text)

    def recover(self, pruned: Any, kind: str | None = None, **options: Any) -> Any:
        """The recover stage of a pruned model; in the last steps on a type's grid where one is given."""
        context = self.context(**{"recover": "tokens", **options})
        return recover_stage(context, self.text, self.dense, pruned, kind)

    def stage(
        self,
        name: str,
        make: Callable[[Path], dict[str, Any]],
        *,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        code: Sequence[str] = (),
        resumable: bool = False,
    ) -> Any:
        """A stage of an experiment's own, cached like those of a build."""
        spec = StageSpec(name, settings=settings, inputs=inputs, code=tuple(code), resumable=resumable)
        return run_stage(self.work, spec, make)

    def train(
        self,
        checkpoint: Path,
        digest: str,
        tokens: int,
        *,
        documents: Path | None = None,
        validation: Path | None = None,
        evaluations: int = 3,
    ) -> Any:
        """Any checkpoint fine-tuned without a teacher, to the end; its stage.

        Args:
            digest: of the checkpoint.
            documents, validation: a train.jsonl and validation texts other than the corpus's.
        """
        from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
        from minigpt_edge.recover.recover import recover

        train = documents or self.text.path / "train.jsonl"
        validation = validation or self.text.path / "validation.texts.json"
        threads = self.recipe.threads
        return self.stage(
            "train",
            lambda out: recover(
                checkpoint,
                out,
                TrainingTexts(train, validation),
                RecoverConfig(
                    tokens,
                    sequence_length=min(WINDOW, self.base.context),
                    evaluations=evaluations,
                    patience=evaluations,
                    threads=threads,
                ),
                on_progress=self.log.recovery,
            ),
            settings={"tokens": tokens, "evaluations": evaluations, "threads": threads},
            inputs={
                "checkpoint": digest,
                "corpus": self.text.digest,
                "train": sha256_file(train),
                "validation": sha256_file(validation),
            },
            code=RECOVER_CODE,
            resumable=True,
        )

    def test(self, checkpoint: Path, digest: str) -> dict[str, Any]:
        """A checkpoint's quality on the test windows, cached as a stage."""
        from minigpt_edge.evaluation.perplexity import evaluate

        def make(out: Path) -> dict[str, Any]:
            import torch

            torch.set_num_threads(self.recipe.threads)
            return evaluate(checkpoint, self.text.path / "test.texts.json")

        stage = self.stage(
            "test-quality",
            make,
            settings={"threads": self.recipe.threads},
            inputs={"checkpoint": digest, "test": self.text.manifest["outputs"]["test.texts.json"]},
            code=EVALUATE_CODE,
        )
        return {key: stage.metrics[key] for key in ("bits_per_byte", "perplexity_per_base_token")}


def opened(
    threads: int,
    corpus: Path | None = None,
    log: Any = None,
    domain: str = "law",
    model: str | None = None,
    *,
    dense: bool = True,
) -> Bench:
    """A domain's corpus, or another, and a model, by default the default one, dense quality included."""
    from minigpt_edge.models import base_model

    source: dict[str, Any] = {"corpus": (str(corpus),)} if corpus else {"domain": domain}
    recipe = Recipe(**source, model=model, threads=threads, recover="no")
    work, log = cache_dir() / "work", log or Log()
    work.mkdir(parents=True, exist_ok=True)
    base = base_model.resolve_model(model)
    context = BuildContext(work, recipe, base, log)
    text = corpus_stage(context)
    return Bench(work, base, text, recipe, log, dense_stage(context, text) if dense else None)


def write(path: Path, bench: Bench, found: Mapping[str, Any]) -> None:
    """Write a result with what it was made on."""
    about = {"domain": bench.recipe.domain, "model": bench.base.name}
    write_result(path, {**about, **found, "threads": bench.recipe.threads})
    bench.log.line("written", path.name)


def run(name: str, parts: Parts, description: str) -> None:
    """Run the parts that the command line asks for, write results/NAME-PART.json for each."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    bench = opened(given.threads)
    with bench.log:
        for part in given.only:
            found: dict[str, Any] = {"rows": parts[part](bench)}
            if part == "medicine":  # its dense model is among the rows
                found["domain"] = part
            else:
                found["dense"] = bench.test(bench.base.path, bench.base.fingerprint)
            write(RESULTS / f"{name}-{part}.json", bench, found)
