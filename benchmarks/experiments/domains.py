"""The paper's five domains: dense, fine-tuned and pruned, at F16 and four bits, on text and on questions.

    python benchmarks/experiments/domains.py [--only DOMAIN ...] [--parts PART ...] [--threads N]

Every figure is of the GGUF file in llama.cpp, on the domain's test split, and of four-bit files on the test
windows of the other domains and of general text too: what specialising cost there. Parts: domains (dense,
fine-tuned, 42 %), sizes (other sparsities, of one domain), second (another base model, on two). Steps are
finished stages, so an interrupted run goes on where it was. Writes benchmarks/results/domains.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minigpt_edge
from benchmarks.lib import stories
from benchmarks.lib.bench import MEASURE_CODE, Bench, corpus_stage, opened
from benchmarks.lib.files import F16, gguf_files
from benchmarks.lib.results import RESULTS, provenance

RESULT = RESULTS / "domains.json"
DOMAINS = ("law", "medical", "economics", "games", "translation")
GENERAL = "general"
PARTS = {"domains": DOMAINS, "sizes": ("law",), "second": ("law", "games")}
SPARSITIES = {"domains": (0.42,), "sizes": (0.2, 0.6), "second": (0.42,)}
FOUR_BITS = "iq4_nl"
COMPLETIONS = 300  # made from held-out documents
QUESTIONS = 100  # of each set at most, drawn by a fixed seed; a domain has up to five sets
ROUNDS = 4  # of speeds
SEEN_TOKENS = 28_000  # of text that was trained on, as many as the test windows have
WHOLE = 450  # tokens of the base model: such a text is one piece of a window under a trimmed vocabulary too
NOT_TUNED = "not fine-tuned"  # its text alone is scored


def models_of(bench: Bench, part: str) -> Iterator[tuple[str, Path, Path, dict[str, Any]]]:
    """(name, checkpoint, importance matrix, what is known of it) of a part's models."""
    if part != "sizes":
        yield from _dense(bench)
    for sparsity in SPARSITIES[part]:
        yield from _pruned(bench, sparsity, untuned=part != "sizes")


def _dense(bench: Bench) -> Iterator[tuple[str, Path, Path, dict[str, Any]]]:
    from minigpt_edge.prune.context import IMPORTANCE

    whole = bench.prune(sparsity=0.0, min_count=0)  # nothing is removed: for its importance matrix
    importance = whole.path / IMPORTANCE
    yield "dense", bench.base.path, importance, {"work_seconds": _seconds(whole)}
    tuned = bench.recover(whole, distill=0.0)
    yield "dense, fine-tuned", tuned.path, importance, {**_training(tuned), "work_seconds": _seconds(tuned)}


def _pruned(
    bench: Bench, sparsity: float, *, untuned: bool
) -> Iterator[tuple[str, Path, Path, dict[str, Any]]]:
    """One sparsity's model, and the same before fine-tuning where `untuned`."""
    from minigpt_edge.prune.context import CHECKPOINT, IMPORTANCE

    pruned = bench.prune(sparsity=sparsity)
    importance = pruned.path / IMPORTANCE
    facts = {"sparsity": pruned.metrics["sparsity"], "vocabulary": pruned.metrics["vocabulary"]}
    if untuned:
        yield f"pruned {sparsity:.0%}, {NOT_TUNED}", pruned.path / CHECKPOINT, importance, facts
    stage = bench.recover(pruned)
    training = {**_training(stage), "work_seconds": _seconds(pruned) + _seconds(stage)}
    yield f"pruned {sparsity:.0%}", stage.path, importance, {**facts, **training}


def _seconds(stage: Any) -> float:
    return float(stage.manifest["seconds"])


def _training(stage: Any) -> dict[str, Any]:
    """Held-out bits per byte and training loss as training went on: overfitting shows where they part."""
    history = [entry for entry in stage.metrics["history"] if "bits_per_byte" in entry]
    return {"seconds": _seconds(stage), "tokens": stage.metrics["tokens"], "history": history}


def evaluated(
    bench: Bench, domain: str, name: str, kind: str, made: Any, corpora: dict[str, str]
) -> dict[str, Any]:
    """Texts and questions of one file, each group a stage of its own."""
    path = _file(kind, made)
    groups: list[tuple[list[str], int | None]] = [([f"text:{domain}"], None)]
    if not name.endswith(NOT_TUNED):
        groups += [(["completion"], COMPLETIONS)]
        groups += [(["mcq"], QUESTIONS)] if domain != "games" else []  # no question set is known for it
        if kind != "f16" and bench.recipe.model is None:  # of the default model only
            groups += [([f"text:{other}"], None) for other in corpora if other != domain]
    tasks: dict[str, Any] = {}
    seconds = _seconds(made)
    for names, limit in groups:
        source = corpora[names[0].partition(":")[2] or domain]
        stage = _evaluated(bench, domain, made, path, names, limit, source)
        tasks |= stage.metrics["tasks"]
        seconds += _seconds(stage)
    for result in tasks.values():
        for scoring in {"sum", "per_byte"} & result.keys():
            answers = result[scoring].pop("answers")
            result[scoring]["most_chosen"] = Counter(answers).most_common(1)[0][1] / len(answers)
    found = {"bytes": path.stat().st_size, "tasks": tasks, "evaluate_seconds": seconds}
    if kind == "f16" and not name.endswith(NOT_TUNED):
        found["seen"] = _seen(bench, made, path)
    return found


def _seen(bench: Bench, made: Any, path: Path) -> dict[str, Any]:
    """A file's quality on text that fine-tuning took first: where it is overfitted, this gets ahead."""
    from minigpt_edge.data.corpus import read_documents
    from minigpt_edge.data.windows import MAX_TOKENS, choose_windows, write_texts
    from minigpt_edge.prune.settings import WINDOW
    from minigpt_edge_runtime.bench.fresh import run_fresh
    from minigpt_edge_runtime.engines.text import open_tokenizer

    def make(out: Path) -> dict[str, Any]:
        texts = read_documents(bench.text.path / "train.jsonl")
        draw = random.Random(f"{bench.recipe.seed}:0")  # as `TrainingWindows` has it
        order = draw.sample(range(len(texts)), len(texts))
        tokenizer = open_tokenizer(bench.base.tokenizer)
        documents, tokens = [], 0
        for text in (texts[number] for number in order):
            length = len(tokenizer.encode(text, add_special_tokens=False).ids)
            if length <= WHOLE:  # of longer ones only a piece has been seen
                documents.append({"text": text, "id": hashlib.sha256(text.encode()).hexdigest()})
            tokens += min(length, WINDOW)
            if tokens > bench.recipe.recover_tokens // 2:  # a trimmed vocabulary makes more tokens of a text
                break
        longest = min(MAX_TOKENS, bench.base.context * 3 // 4)  # as the corpus has it
        windows = choose_windows(documents, tokenizer, SEEN_TOKENS, longest)
        write_texts(out / "seen.texts.json", bench.base.document_start, "train", windows)
        return dict(
            run_fresh("quality", path, texts=str(out / "seen.texts.json"), threads=bench.recipe.threads)
        )

    stage = bench.stage(
        "seen-text",
        make,
        settings={
            "threads": bench.recipe.threads,
            "tokens": SEEN_TOKENS,
            "of": bench.recipe.recover_tokens,
        },
        inputs={"model": made.digest, "corpus": bench.text.digest},
        code=MEASURE_CODE,
    )
    return {key: stage.metrics[key] for key in ("bits_per_byte", "stderr", "windows")}


def _file(kind: str, made: Any) -> Path:
    return Path(made.path / (F16 if kind == "f16" else "model.gguf"))


def _corpora(bench: Bench) -> dict[str, str]:
    """Domain -> digest of its corpus, of all domains whose text is scored."""
    domains = (*DOMAINS, GENERAL)
    return {name: corpus_stage(bench.context(domain=name), to_train=False).digest for name in domains}


def _evaluated(
    bench: Bench,
    domain: str,
    made: Any,
    path: Path,
    names: list[str],
    limit: int | None,
    corpus: str,
) -> Any:
    """The stage of these tasks' results; `corpus` is the digest of the text that they are about."""
    threads = bench.recipe.threads

    def make(out: Path) -> dict[str, Any]:
        about = {"domain": domain, "base_model": bench.recipe.model}
        found = minigpt_edge.evaluate(path, names, quiet=True, limit=limit, threads=threads, **about)
        return {"tasks": found["tasks"]}

    return bench.stage(
        "evaluate",
        make,
        settings={"tasks": names, "limit": limit, "threads": threads},
        inputs={"model": made.digest, "corpus": corpus},
        code=MEASURE_CODE,
    )


def speeds(bench: Bench, made: list[Any], paths: list[Path]) -> Any:
    """Of every file, one right after the other so that one moment's load does not tell them apart; a stage.

    Of each the fastest of ROUNDS rounds, with all rounds in "rounds".
    """
    from minigpt_edge_runtime.bench.fresh import run_fresh

    threads = bench.recipe.threads

    def measure(out: Path) -> dict[str, Any]:
        rounds = [[dict(run_fresh("speed", path, threads=threads)) for path in paths] for _ in range(ROUNDS)]
        best = []
        for runs in zip(*rounds, strict=True):
            decode = [run["decode_tokens_per_second"] for run in runs]
            best.append({**runs[decode.index(max(decode))], "rounds": decode})
        return {"speeds": best}

    return bench.stage(
        "speeds",
        measure,
        settings={"threads": threads, "rounds": ROUNDS},
        inputs={f"model-{number}": one.digest for number, one in enumerate(made)},
        code=MEASURE_CODE,
    )


def rows_of(bench: Bench, domain: str, part: str) -> tuple[list[dict[str, Any]], float]:
    """A row per model and type, and the seconds that all of it takes from nothing."""
    files = [
        (name, facts, kind, made)
        for name, checkpoint, importance, facts in list(models_of(bench, part))
        for kind, made, _ in gguf_files(bench, name, checkpoint, importance, (FOUR_BITS,))
    ]
    corpora = _corpora(bench)
    rows = [
        {"model": name, "type": kind, **facts, **evaluated(bench, domain, name, kind, made, corpora)}
        for name, facts, kind, made in files
    ]
    paths = [_file(kind, made) for _, _, kind, made in files]
    measured = speeds(bench, [made for *_, made in files], paths)
    seconds = _seconds(measured) + sum(row.pop("evaluate_seconds") for row in rows)
    seconds += sum(row.get("work_seconds", 0.0) for row in rows if row["type"] == "f16")
    found = zip(rows, measured.metrics["speeds"], strict=True)
    return [{**row, "speed": speed} for row, speed in found], seconds


def main() -> None:
    """Run the domains that are asked for, keeping the others' rows."""
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.packages import cache_dir
    from minigpt_edge.stages.parallel import all_cores
    from minigpt_edge_runtime.files import write_json

    parser = argparse.ArgumentParser(description="The five domains.")
    parser.add_argument("--only", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
    if RESULT.exists():
        kept = json.loads(RESULT.read_text())
        found = {part: kept.get(part, {}) for part in PARTS}
    with Log() as log:
        for domain in given.only:
            for part in given.parts:
                if domain not in PARTS[part]:
                    continue
                model = str(stories.base_model(cache_dir())) if part == "second" else None
                bench = opened(given.threads, log=log, domain=domain, model=model)
                name = stories.NAME if part == "second" else bench.base.name
                done = {**found[part], domain: {"model": name, **of_domain(bench, domain, part)}}
                found[part] = {one: done[one] for one in DOMAINS if one in done}
                write_json(RESULT, found)
                log.line("written", f"{RESULT.name}: {part}, {domain}")


def of_domain(bench: Bench, domain: str, part: str) -> dict[str, Any]:
    """What is reported of a part's models of a domain, and where and when it was measured."""
    dropped = {**bench.text.metrics["dropped"], "read": bench.text.metrics["documents_read"]}
    rows, seconds = rows_of(bench, domain, part)
    splits, pairs = bench.text.metrics["splits"], bench.text.metrics.get("pairs")
    found = {"splits": splits, "dropped": dropped, "pairs": pairs, "rows": rows, "seconds": seconds}
    return {**found, "threads": bench.recipe.threads, **provenance()}


if __name__ == "__main__":
    main()
