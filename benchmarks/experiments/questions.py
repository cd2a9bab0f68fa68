"""What decides the quality of a pruned model: thresholds, text to calibrate and to train on, rare terms.

    python benchmarks/experiments/questions.py [--only PART ...] [--threads N]

Parts: thresholds, calibration, training, terms. Steps are finished stages, shared with
benchmarks/experiments/methods.py. Training here has no teacher, so that its loss can be compared with that of
held-out text. Writes benchmarks/results/questions-PART.json.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import PUBLISHED_TOKENS, Bench, Parts, run

THRESHOLDS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # those of Mini-GPTs
EPOCH = 24_576  # tokens of text that is trained on again and again
EPOCHS = 4
TRAINED = EPOCH * EPOCHS
CALIBRATION = (8_192, 32_768, 131_072)
DISTINCT = (EPOCHS * 2, EPOCHS, 1)  # passes over a text in the same number of steps
RARE = range(5, 20)  # how often a rare term occurs in the training text


def part_of_text(bench: Bench, tokens: int) -> Path:
    """The first documents of the training text, in shuffled order, that hold so many base tokens."""
    import random

    from minigpt_edge.data import corpus
    from minigpt_edge.models.forward import read_tokenizer

    def make(out: Path) -> dict[str, Any]:
        documents = corpus.read_split(bench.text.path, "train")
        random.Random(bench.recipe.seed).shuffle(documents)
        tokenizer, count = read_tokenizer(bench.base.path), 0
        with open(out / "train.jsonl", "w", encoding="utf-8") as lines:
            while count < tokens:
                text = documents.pop()
                count += len(tokenizer.encode(text, add_special_tokens=False).ids) + 1
                lines.write(json.dumps({"text": text}) + "\n")
        return {"base_tokens": count}

    inputs = {"corpus": bench.text.digest}
    stage = bench.stage("part", make, settings={"tokens": tokens}, inputs=inputs)
    return Path(stage.path / "train.jsonl")


def curve(checkpoint: Path, documents: Path, stage: Any) -> list[dict[str, float]]:
    """Bits per byte of each epoch or third: of its training text on the way, of held-out text at its end."""
    from minigpt_edge.data.corpus import read_documents
    from minigpt_edge.models.forward import read_tokenizer

    texts, tokenizer = read_documents(documents), read_tokenizer(checkpoint)
    tokens = sum(len(found.ids) + 1 for found in tokenizer.encode_batch(texts, add_special_tokens=False))
    per_byte = tokens / sum(len(text.encode()) for text in texts) / math.log(2)
    points: list[dict[str, float]] = []
    losses: list[float] = []
    for entry in stage.metrics["history"]:
        losses += [entry["loss"]] if "loss" in entry else []
        if "bits_per_byte" in entry:
            point = {"tokens": entry["tokens"], "validation": entry["bits_per_byte"]}
            points.append(point | ({"training": sum(losses) / len(losses) * per_byte} if losses else {}))
            losses = []
    return points


def trained(bench: Bench, pruned: Any, distinct: int) -> dict[str, Any]:
    """Quality after TRAINED tokens from a text of `distinct` tokens; the best evaluation's weights."""
    from minigpt_edge.prune.context import CHECKPOINT

    documents, checkpoint = part_of_text(bench, distinct), pruned.path / CHECKPOINT
    stage = bench.train(checkpoint, pruned.digest, TRAINED, documents=documents, evaluations=EPOCHS)
    return {
        "distinct_tokens": distinct,
        "tokens": stage.metrics["tokens"],
        "seconds": stage.manifest["seconds"],
        "curve": curve(checkpoint, documents, stage),
        "test": bench.test(stage.path, stage.digest),
    }


def one_shot(bench: Bench, pruned: Any) -> dict[str, Any]:
    """What pruning left, and its quality before training."""
    from minigpt_edge.prune.context import CHECKPOINT

    return {
        "parameters": pruned.metrics["parameters"]["kept"],
        "sparsity": pruned.metrics["sparsity"],
        "seconds": pruned.manifest["seconds"],
        "test": bench.test(pruned.path / CHECKPOINT, pruned.digest),
    }


def thresholds(bench: Bench) -> list[dict[str, Any]]:
    """Mini-GPTs' thresholds, the vocabulary trimmed as by default; the curve shows the overfitting."""
    from minigpt_edge_runtime.errors import EdgeError

    rows: list[dict[str, Any]] = []
    for threshold in THRESHOLDS:
        try:
            pruned = bench.prune(
                method="contextual", threshold=threshold, calibration_tokens=PUBLISHED_TOKENS
            )
        except EdgeError as error:
            rows.append({"threshold": threshold, "failed": error.message})
            continue
        after = trained(bench, pruned, EPOCH)
        rows.append({"threshold": threshold, "before": one_shot(bench, pruned), "after": after})
    return rows


def calibration(bench: Bench) -> list[dict[str, Any]]:
    """How much text scores and refits need, at 42 %."""
    rows = []
    for method in ("least_squares", "contextual"):
        for tokens in CALIBRATION:
            pruned = bench.prune(method=method, sparsity=0.42, calibration_tokens=tokens)
            rows.append({"method": method, "calibration_tokens": tokens, **one_shot(bench, pruned)})
    return rows


def training(bench: Bench) -> list[dict[str, Any]]:
    """The same steps on little text many times, and on more of it fewer times."""
    from minigpt_edge.recipe import PAPER_SPARSITY

    pruned = bench.prune(sparsity=PAPER_SPARSITY)
    return [trained(bench, pruned, TRAINED // passes) for passes in DISTINCT]


def rare_terms(bench: Bench) -> list[str]:
    """Words that are one base token after a space, and rare in the training text."""
    from minigpt_edge.data import corpus
    from minigpt_edge.prune.vocabulary import choose
    from minigpt_edge_runtime.files import read_json

    data = read_json(bench.base.path / "tokenizer.json")
    documents = corpus.read_split(bench.text.path, "train")
    counts = choose.count_tokens(choose.open_tokenizer(data), documents)
    words = {token: number for token, number in data["model"]["vocab"].items() if counts[number] in RARE}
    return sorted(word[1:] for word in words if re.fullmatch("Ġ[a-z]{4,}", word))


def terms_quality(bench: Bench, checkpoint: Path, rare: list[str]) -> dict[str, Any]:
    """Nats per occurrence of rare terms, and bits per byte of all other text, in the test windows."""
    import torch

    from minigpt_edge.data.windows import read_texts
    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.models.chunked_loss import chunked_nll
    from minigpt_edge.models.forward import hidden_states, read_tokenizer

    start, windows = read_texts(bench.text.path / "test.texts.json")
    tokenizer, model = read_tokenizer(checkpoint), load_model(checkpoint)
    attention.use_in(model)
    model.eval()
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    pattern = re.compile(r"(?<![A-Za-z]) (?:" + "|".join(rare) + r")(?![A-Za-z])")
    inside = outside = 0.0
    found = size = 0
    for window in windows:
        text = window.text
        encoded = tokenizer.encode(text, add_special_tokens=False)
        ids = torch.tensor([[tokenizer.token_to_id(start), *encoded.ids]])
        with torch.inference_mode():
            losses = chunked_nll(hidden_states(model, ids)[0, :-1], weight, ids[0, 1:]).tolist()
        spans = [match.span() for match in pattern.finditer(text)]
        found += len(spans)
        size += len(text.encode()) - sum(end - begin for begin, end in spans)
        for loss, (begin, end) in zip(losses, encoded.offsets, strict=True):
            is_rare = any(begin < last and end > first for first, last in spans)
            inside, outside = inside + loss * is_rare, outside + loss * (not is_rare)
    return {
        "occurrences": found,
        "nats_per_occurrence": inside / found,
        "other_bits_per_byte": outside / math.log(2) / size,
        "vocabulary": len(weight),
    }


def terms(bench: Bench) -> list[dict[str, Any]]:
    """Rare terms' tokens removed, and protected by --keep-tokens, before and after training."""
    from minigpt_edge.prune.context import CHECKPOINT

    rare = rare_terms(bench)
    listed = bench.work / "rare-terms.txt"
    listed.write_text("\n".join(rare) + "\n", encoding="utf-8")
    settings = {
        "sparsity": 0.42,
        "min_count": RARE.stop,
        "calibration_tokens": PUBLISHED_TOKENS,
    }
    rows = []
    for name, kept in (("removed", None), ("protected", listed)):
        pruned = bench.prune(keep_tokens=kept, **settings)
        stage = bench.train(pruned.path / CHECKPOINT, pruned.digest, TRAINED)
        rows.append(
            {
                "terms": name,
                "count": len(rare),
                "before": terms_quality(bench, pruned.path / CHECKPOINT, rare),
                "after": terms_quality(bench, stage.path, rare),
            }
        )
    return rows


PARTS: Parts = {
    "thresholds": thresholds,
    "calibration": calibration,
    "training": training,
    "terms": terms,
}

if __name__ == "__main__":
    run("questions", PARTS, "What decides the quality of a pruned model.")
