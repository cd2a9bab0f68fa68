"""Our accuracies beside lm-evaluation-harness's, on the same questions and the same files.

    python benchmarks/experiments/lm_eval_agreement.py MODEL ... [--limit N] [--tasks ...]

lm_eval runs its own task definitions (prompts, choices, metrics) with our model adapter; only the place that
rows are read from is changed, since its own is the hub. Likelihoods come from the same code on both sides:
what agrees is what is asked, how it is split into tokens, and how it is counted. Writes
benchmarks/results/lm_eval_agreement.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib.results import RESULTS, write_result

RESULT = RESULTS / "lm_eval_agreement.json"
_PLAIN = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "medmcqa")
_MMLU = ("anatomy", "professional_law", "econometrics")
NAMES = {
    **{name: name for name in _PLAIN},
    **{f"mmlu:{name}": f"mmlu_{name}" for name in _MMLU},
}  # ours: theirs


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a question set with the columns that the harness's own definition reads."""
    from minigpt_edge.data import tasks

    found = [dict(row) for row in tasks.package_rows(tasks.get_task(name))]
    for row in found:
        if name in ("arc_easy", "arc_challenge", "openbookqa"):  # without their labels
            question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            labels = list("ABCDEFGH"[: len(row["choices"])])
            row |= {"question": question, "question_stem": question, "answerKey": labels[row["gold"]]}
            row["choices"] = {"text": row["choices"], "label": labels}
        if name == "boolq":
            row["label"] = int(row["answer"])
    return found


def theirs(model: str, names: list[str], limit: int | None, threads: int) -> dict[str, dict[str, float]]:
    """Accuracies by the harness, with its own definitions of the tasks."""
    import lm_eval
    import yaml
    from lm_eval.tasks import TaskManager

    import minigpt_edge.evaluation.lm_eval_model  # noqa: F401 - registers the model

    known = TaskManager().task_index
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{NAMES[name]}.json"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)[:limit]))
            definition = {
                "include": str(known[NAMES[name]].yaml_path),
                "task": f"{NAMES[name]}_here",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"validation": str(path)}},
                "training_split": None,
                "test_split": None,
                "fewshot_split": None,
                "validation_split": "validation",
            }
            (Path(folder) / f"{NAMES[name]}.yaml").write_text(yaml.safe_dump(definition))
        found = lm_eval.simple_evaluate(
            model="minigpt-edge",
            model_args={"path": model, "threads": threads},
            tasks=[f"{NAMES[name]}_here" for name in names],
            task_manager=TaskManager(include_path=folder),
            bootstrap_iters=0,
        )
    return {name: found["results"][f"{NAMES[name]}_here"] for name in names}


def ours(model: str, names: list[str], limit: int | None, threads: int) -> dict[str, Any]:
    """Accuracies by `evaluate`, of the same first questions."""
    from minigpt_edge.data import tasks
    from minigpt_edge.evaluation.multiple_choice import answer
    from minigpt_edge.evaluation.subject import subject_of

    subject = subject_of(Path(model))
    found = {}
    with subject.open(threads) as engine:
        for name in names:
            items = tasks.load_items(tasks.get_task(name))[:limit]
            found[name] = answer(engine, items, document_start=subject.document_start)
    return found


def main() -> None:
    """Both for every file, and their differences in points."""
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    rows = [row for model in given.model for row in compared(model, given.tasks, given.limit, given.threads)]
    write_result(RESULT, {"limit": given.limit, "rows": rows})


def compared(model: str, names: list[str], limit: int | None, threads: int) -> list[dict[str, Any]]:
    """A row per question set, accuracies in percent."""
    from minigpt_edge.evaluation.subject import subject_of

    file = subject_of(Path(model)).path.name
    harness, mine = theirs(model, names, limit, threads), ours(model, names, limit, threads)
    rows = []
    for name in names:
        by_sum, other = mine[name]["sum"], 100 * harness[name]["acc,none"]
        row = {"file": file, "task": name, "questions": by_sum["questions"], "ours": 100 * by_sum["accuracy"]}
        row |= {"interval": [100 * end for end in by_sum["interval"]], "lm_eval": other}
        rows.append({**row, "difference": row["ours"] - other})
        print(f"{file} {name:15} {row['ours']:6.2f} {other:6.2f}  {rows[-1]['difference']:+.2f} points")
    return rows


if __name__ == "__main__":
    main()
