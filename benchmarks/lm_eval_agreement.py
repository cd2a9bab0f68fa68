"""Our accuracies beside lm-evaluation-harness's, on the same questions and the same file.

    python benchmarks/lm_eval_agreement.py MODEL [--limit N] [--tasks ...]

lm_eval runs its own task definitions (prompts, choices, metrics) with our model adapter; only the place that
rows are read from is changed, since its own is the hub. Writes benchmarks/results/lm_eval_agreement.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from provenance import provenance

RESULT = Path(__file__).parent / "results" / "lm_eval_agreement.json"
NAMES = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a question set with the columns that the harness's own definition reads."""
    from minigpt_edge import tasks
    from minigpt_edge.packages import cache_dir

    found = [dict(row) for row in tasks.package_rows(tasks.get_task(name), cache_dir())]
    for row in found:
        if "query" in row:  # ARC and OpenBookQA without their labels
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

    import minigpt_edge.lm_eval_model  # noqa: F401 - registers the model

    known = TaskManager().task_index
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = Path(folder) / f"{name}.json"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)[:limit]))
            definition = {
                "include": str(known[name].yaml_path),
                "task": f"{name}_here",
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {"validation": str(path)}},
                "training_split": None,
                "test_split": None,
                "validation_split": "validation",
            }
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump(definition))
        found = lm_eval.simple_evaluate(
            model="minigpt-edge",
            model_args={"path": model, "threads": threads},
            tasks=[f"{name}_here" for name in names],
            task_manager=TaskManager(include_path=folder),
            bootstrap_iters=0,
        )
    return {name: found["results"][f"{name}_here"] for name in names}


def ours(model: str, names: list[str], limit: int | None, threads: int) -> dict[str, Any]:
    """Accuracies by `evaluate`, of the same first questions."""
    from minigpt_edge import evaluating, tasks
    from minigpt_edge.evaluate.multiple_choice import answer
    from minigpt_edge.packages import cache_dir

    subject = evaluating.subject_of(Path(model))
    found = {}
    with subject.open(threads) as engine:
        for name in names:
            items = tasks.load_items(tasks.get_task(name), cache_dir())[:limit]
            found[name] = answer(engine, items, document_start=subject.document_start)
    return found


def main() -> None:
    """Both, and their differences in points."""
    from minigpt_edge.commands.build import all_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    harness = theirs(given.model, given.tasks, given.limit, given.threads)
    mine = ours(given.model, given.tasks, given.limit, given.threads)
    rows = []
    for name in given.tasks:
        row = {
            "task": name,
            "questions": mine[name]["sum"]["questions"],
            "ours": 100 * mine[name]["sum"]["accuracy"],
            "lm_eval": 100 * harness[name]["acc,none"],
        }
        rows.append({**row, "difference": row["ours"] - row["lm_eval"]})
        print(f"{name:15} {row['ours']:6.2f} {row['lm_eval']:6.2f}  {rows[-1]['difference']:+.2f} points")
    result = {"model": Path(given.model).name, "limit": given.limit, "rows": rows, **provenance()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
