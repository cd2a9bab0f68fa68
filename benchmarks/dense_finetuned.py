"""The bar for recovery: the dense model fine-tuned on the same tokens, both on the test windows, in torch.

    python benchmarks/dense_finetuned.py [--recover-tokens N]

Uses (and fills) the same finished stages as `minigpt-edge build --domain law`, and adds two: the dense
model's fine-tuning, with the same settings, data and order but no teacher, and recovery without the dense
model as teacher. Writes benchmarks/results/dense_finetuned.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "dense_finetuned.json"


def main() -> None:
    """Fine-tune the dense model, score everything on test, write the result."""
    from minigpt_edge import models, pipeline
    from minigpt_edge.commands.build import all_cores
    from minigpt_edge.console import Talk
    from minigpt_edge.evaluate.perplexity import evaluate
    from minigpt_edge.finetune import recover
    from minigpt_edge.packages import cache_dir
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stage import locked, run_stage
    from minigpt_edge_runtime.device import device_info

    parser = argparse.ArgumentParser()
    parser.add_argument("--recover-tokens", type=int, default=Recipe.recover_tokens)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    recipe = Recipe(domain="law", recover_tokens=given.recover_tokens, threads=given.threads)
    work = cache_dir() / "work"
    with Talk() as talk, locked(work):
        base = models.resolve_model()
        text = pipeline.corpus_stage(work, recipe, base, pipeline.corpus_sources(recipe), talk)
        dense = pipeline.dense_stage(work, recipe, base, text, talk)
        pruned = pipeline.prune_stage(work, recipe, base, text, talk)
        recovered = pipeline.recover_stage(work, recipe, base, pruned, text, dense, talk)
        untaught = dataclasses.replace(recipe, distill=0.0)
        alone = pipeline.recover_stage(work, untaught, base, pruned, text, dense, talk)
        assert recovered is not None and alone is not None
        tuned = run_stage(
            work,
            "dense-finetuned",
            settings={"tokens": recipe.recover_tokens, "seed": recipe.seed, "threads": recipe.threads},
            inputs={"model": base.fingerprint, "corpus": text.digest},
            code=pipeline.RECOVER_CODE,
            make=lambda out: recover(
                base.path,
                out,
                train=text.path / "train.jsonl",
                validation=text.path / "validation.texts.json",
                tokens=recipe.recover_tokens,
                seed=recipe.seed,
                threads=recipe.threads,
                on_progress=talk.recovery,
            ),
            resumable=True,
        )
    checkpoints = {
        "dense": base.path,
        "pruned": pruned.path / pipeline.CHECKPOINT,
        "recovered": recovered.path,
        "recovered_without_teacher": alone.path,
        "dense_finetuned": tuned.path,
    }
    test = {name: evaluate(path, text.path / "test.texts.json") for name, path in checkpoints.items()}
    bits = {name: quality["bits_per_byte"] for name, quality in test.items()}
    result = {
        "recover_tokens": recovered.metrics["tokens"],
        "test": test,
        "ratios": {
            "perplexity_pruned_over_dense": round(
                test["pruned"]["perplexity_per_base_token"] / test["dense"]["perplexity_per_base_token"], 4
            ),
            "bits_recovered_over_dense_finetuned": round(bits["recovered"] / bits["dense_finetuned"], 4),
            "bits_recovered_without_teacher_over_dense_finetuned": round(
                bits["recovered_without_teacher"] / bits["dense_finetuned"], 4
            ),
            "bits_recovered_over_dense": round(bits["recovered"] / bits["dense"], 4),
        },
        "training": {
            name: {key: stage.metrics[key] for key in ("tokens_per_second", "matmul_fraction", "seconds")}
            for name, stage in (
                ("recovered", recovered),
                ("recovered_without_teacher", alone),
                ("dense_finetuned", tuned),
            )
        },
        "threads": recipe.threads,
        "device": device_info(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
