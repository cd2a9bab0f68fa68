"""The paper's five domains: dense, fine-tuned and pruned, at F16 and four bits, on text and on questions.

    python benchmarks/domains.py [--only DOMAIN ...] [--threads N]

Every figure is of the GGUF file in llama.cpp, on the domain's test split, and of four-bit files on the test
windows of the other domains and of general text too: what specialising cost there. A second base model goes
through two of the domains. Steps are finished stages, so an interrupted run goes on where it was. Writes
benchmarks/results/domains.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import front
import methods
import stories
from provenance import provenance

RESULT = methods.RESULTS / "domains.json"
DOMAINS = ("law", "medical", "economics", "games", "translation")
GENERAL = "general"
SECOND = ("law", "games")  # of the second base model
SPARSITIES = {"law": (0.2, 0.42, 0.6)}
FOUR_BITS = "iq4_nl"
COMPLETIONS = 300  # made from held-out documents
QUESTIONS = 100  # of each set at most, drawn by a fixed seed; a domain has up to five sets
ROUNDS = 4  # of speeds
NOT_TUNED = "not fine-tuned"  # its text alone is scored


def models_of(bench: methods.Bench, domain: str) -> Iterator[tuple[str, Path, Path, dict[str, Any]]]:
    """(name, checkpoint, importance matrix, what is known of it)."""
    from minigpt_edge.shrink.prepare import CHECKPOINT
    from minigpt_edge.shrink.weights import IMPORTANCE

    whole = bench.prune(sparsity=0.0, min_count=0)  # nothing goes: for its importance matrix
    importance = whole.path / IMPORTANCE
    yield "dense", bench.base.path, importance, {}
    tuned = bench.recover(whole, distill=0.0)
    yield "dense, fine-tuned", tuned.path, importance, _training(tuned)
    for sparsity in SPARSITIES.get(domain, (0.42,)):
        pruned = bench.prune(sparsity=sparsity)
        own = pruned.path / IMPORTANCE
        facts = {"sparsity": pruned.metrics["sparsity"], "vocabulary": pruned.metrics["vocabulary"]}
        if sparsity == 0.42:
            yield f"pruned {sparsity:.0%}, {NOT_TUNED}", pruned.path / CHECKPOINT, own, facts
        stage = bench.recover(pruned)
        yield f"pruned {sparsity:.0%}", stage.path, own, {**facts, **_training(stage)}


def _training(stage: Any) -> dict[str, Any]:
    """Held-out bits per byte and training loss as training went on: overfitting shows where they part."""
    history = [entry for entry in stage.metrics["history"] if "bits_per_byte" in entry]
    return {"seconds": stage.manifest["seconds"], "tokens": stage.metrics["tokens"], "history": history}


def evaluated(bench: methods.Bench, domain: str, name: str, kind: str, made: Any) -> dict[str, Any]:
    """Texts and questions of one file, each group a stage of its own."""
    path = _file(kind, made)
    groups = [([f"text:{domain}"], None)]
    if not name.endswith(NOT_TUNED):
        groups += [(["completion"], COMPLETIONS)]
        groups += [(["mcq"], QUESTIONS)] if domain != "games" else []  # no question set is known for it
        if kind != "f16":
            groups += [([f"text:{other}" for other in (*DOMAINS, GENERAL) if other != domain], None)]
    tasks: dict[str, Any] = {}
    for names, limit in groups:
        tasks |= _results(bench, domain, made, path, names, limit)
    for result in tasks.values():  # what every answer was is of no use here
        for scoring in ("sum", "per_byte"):
            result.get(scoring, {}).pop("answers", None)
    return {"bytes": path.stat().st_size, "tasks": tasks}


def _file(kind: str, made: Any) -> Path:
    return Path(made.path / (front.F16 if kind == "f16" else "model.gguf"))


def _results(
    bench: methods.Bench, domain: str, made: Any, path: Path, names: list[str], limit: int | None
) -> dict[str, Any]:
    from minigpt_edge import evaluating
    from minigpt_edge.stage import run_stage

    threads = bench.recipe.threads
    subject = evaluating.Subject(path, domain, bench.recipe.model, bench.base.document_start)
    request = evaluating.Request(limit=limit, threads=threads)
    stage = run_stage(
        bench.work,
        "evaluate",
        settings={"tasks": names, "limit": limit, "threads": threads},
        inputs={"model": made.digest, "corpus": bench.text.digest},
        code=(
            "minigpt_edge.evaluating",
            "minigpt_edge.evaluate.multiple_choice",
            "minigpt_edge.evaluate.translation",
            "minigpt_edge.tasks",
            "minigpt_edge.tasks.items",
            "minigpt_edge_runtime.choices",
            "minigpt_edge_runtime.scoring",
            "minigpt_edge_runtime.gguf",
        ),
        make=lambda out: {"tasks": evaluating.evaluate(subject, names, request, bench.talk)["tasks"]},
    )
    return dict(stage.metrics["tasks"])


def speeds(bench: methods.Bench, made: list[Any], paths: list[Path]) -> list[dict[str, Any]]:
    """Of every file, one right after the other so that one moment's load does not tell them apart.

    Of each the fastest of ROUNDS rounds, with all rounds in "rounds": what else a machine does only slows.
    """
    from minigpt_edge.stage import run_stage
    from minigpt_edge_runtime.measure import run_fresh

    threads = bench.recipe.threads

    def measure(out: Path) -> dict[str, Any]:
        rounds = [[dict(run_fresh("speed", path, threads=threads)) for path in paths] for _ in range(ROUNDS)]
        best = []
        for runs in zip(*rounds, strict=True):
            decode = [run["decode_tokens_per_second"] for run in runs]
            best.append({**runs[decode.index(max(decode))], "rounds": decode})
        return {"speeds": best}

    stage = run_stage(
        bench.work,
        "speeds",
        settings={"threads": threads, "rounds": ROUNDS},
        inputs={f"model-{number}": one.digest for number, one in enumerate(made)},
        code=("minigpt_edge_runtime.measure", "minigpt_edge_runtime.gguf"),
        make=measure,
    )
    return list(stage.metrics["speeds"])


def rows_of(bench: methods.Bench, domain: str) -> list[dict[str, Any]]:
    """A row per model and type."""
    files = [
        (name, facts, kind, made)
        for name, checkpoint, importance, facts in list(models_of(bench, domain))
        for kind, made, _ in front.gguf_files(bench, name, checkpoint, importance, (FOUR_BITS,))
    ]
    rows = [
        {"model": name, "type": kind, **facts, **evaluated(bench, domain, name, kind, made)}
        for name, facts, kind, made in files
    ]
    paths = [_file(kind, made) for _, _, kind, made in files]
    measured = speeds(bench, [made for *_, made in files], paths)
    return [{**row, "speed": speed} for row, speed in zip(rows, measured, strict=True)]


def main() -> None:
    """Run the domains that are asked for, keeping the others' rows."""
    from minigpt_edge.commands.build import all_cores
    from minigpt_edge.console import Talk
    from minigpt_edge.packages import cache_dir

    parser = argparse.ArgumentParser(description="The five domains.")
    parser.add_argument("--only", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"domains": {}, "second": {}}
    with Talk() as talk:
        for domain in given.only:
            bench = methods.opened(given.threads, talk=talk, domain=domain)
            found["domains"][domain] = of_domain(bench, domain)
            methods.write(RESULT, bench, {key: found[key] for key in ("domains", "second")})
            if domain not in SECOND:
                continue
            other = methods.opened(
                given.threads, talk=talk, domain=domain, model=str(stories.base_model(cache_dir()))
            )
            found["second"][domain] = {"model": stories.NAME, **of_domain(other, domain)}
            methods.write(RESULT, bench, {key: found[key] for key in ("domains", "second")})


def of_domain(bench: methods.Bench, domain: str) -> dict[str, Any]:
    """What is told of a domain under one base model."""
    dropped = {**bench.text.metrics["dropped"], "read": bench.text.metrics["documents_read"]}
    rows = rows_of(bench, domain)
    return {"splits": bench.text.metrics["splits"], "dropped": dropped, "rows": rows, **provenance()}


if __name__ == "__main__":
    main()
