"""Every score with the same refit, sizes and data: validation perplexity right after pruning.

    python benchmarks/scores.py [--calibration-tokens N]

Equal widths, so that only the choice of units differs. Writes benchmarks/results/scores.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from provenance import provenance

RESULT = Path(__file__).parent / "results" / "scores.json"


def main() -> None:
    """Prune once per method, score each on the validation windows, write the result."""
    from minigpt_edge import corpus, domains, models
    from minigpt_edge.commands.build import all_cores
    from minigpt_edge.evaluate.perplexity import evaluate
    from minigpt_edge.prune import METHODS
    from minigpt_edge.recipe import PAPER_SPARSITY, Recipe
    from minigpt_edge.settings import WINDOW
    from minigpt_edge.shrink.decide import ShrinkSettings
    from minigpt_edge.shrink.prepare import CHECKPOINT
    from minigpt_edge.shrink.weights import shrink

    parser = argparse.ArgumentParser()
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    base = models.resolve_model()
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
        for method in METHODS:
            settings = ShrinkSettings(
                sparsity=PAPER_SPARSITY,
                method=method,
                widths="equal",
                min_count=Recipe.min_count,
                calibration_tokens=given.calibration_tokens,
                window=WINDOW,
                seed=Recipe.seed,
                threads=given.threads,
            )
            out = Path(folder) / method
            shrink(base.path, base.fingerprint, documents, out, settings)
            found[method] = evaluate(out / CHECKPOINT, text / "validation.texts.json")
            print(method, found[method]["perplexity_per_base_token"], flush=True)
        dense = evaluate(base.path, text / "validation.texts.json")
    result = {
        "calibration_tokens": given.calibration_tokens,
        "sparsity": PAPER_SPARSITY,
        "widths": "equal",
        "dense": dense,
        "methods": found,
        **provenance(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
