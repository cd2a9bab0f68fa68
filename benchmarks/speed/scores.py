"""Three scores with the same refit, sizes and data: validation perplexity right after pruning.

    python benchmarks/speed/scores.py [--calibration-tokens N]

Equal widths and the least-squares refit, so that only the choice of units differs. Writes
benchmarks/results/scores.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.lib.results import RESULTS, write_result

RESULT = RESULTS / "scores.json"
SCORES = ("contextual", "wanda", "least_squares")


def main() -> None:
    """Prune once per score, evaluate each on the validation windows, write the result."""
    from minigpt_edge.data import corpus, domains
    from minigpt_edge.evaluation.perplexity import evaluate
    from minigpt_edge.models import base_model
    from minigpt_edge.prune.prepare import CHECKPOINT
    from minigpt_edge.prune.prune import shrink
    from minigpt_edge.prune.settings import shrink_settings
    from minigpt_edge.recipe import PAPER_SPARSITY, Recipe
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    base = base_model.resolve_model()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "corpus"
        corpus.build_corpus(
            domains.load_domain("law").chosen(),
            text,
            base_tokenizer_path=base.tokenizer,
            document_start=base.document_start,
        )
        documents = corpus.read_split(text, "train")
        for method in SCORES:
            recipe = Recipe(
                domain="law",
                method=method,
                widths="equal",
                refit=True,
                calibration_tokens=given.calibration_tokens,
                threads=given.threads,
            )
            out = Path(folder) / method
            shrink(base.path, base.fingerprint, documents, out, shrink_settings(recipe))
            found[method] = evaluate(out / CHECKPOINT, text / "validation.texts.json")
            print(method, found[method]["perplexity_per_base_token"], flush=True)
        dense = evaluate(base.path, text / "validation.texts.json")
    result = {
        "calibration_tokens": given.calibration_tokens,
        "sparsity": PAPER_SPARSITY,
        "widths": "equal",
        "dense": dense,
        "methods": found,
    }
    write_result(RESULT, result)


if __name__ == "__main__":
    main()
