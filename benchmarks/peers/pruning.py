"""Other pruning tools beside ours: same model, text, share of the parameters, recovery tokens and test.

    python benchmarks/peers/pruning.py [--only PEER ...] [--threads N]

Torch-Pruning, optipfair and llm-compressor (masks) run in environments of their own, each in several of its
documented variants, on the same calibration windows, to the share of all parameters that ours removes. The
best variant of each tool that makes models smaller, by validation, is then fine-tuned on the same tokens.
Finished steps are stages in the cache, shared with benchmarks/experiments/methods.py. A tool that fails is in
the result with its message. Writes benchmarks/results/pruning_peers.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import environments

from benchmarks.lib.bench import PUBLISHED_TOKENS, Bench, opened, write
from benchmarks.lib.results import RESULTS

HERE = Path(__file__).resolve().parent
RESULT = RESULTS / "pruning_peers.json"
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch-pruning": (
        "prune_torch_pruning.py",
        ("example, magnitude", "example, taylor", "width, magnitude", "width, taylor"),
    ),
    "optipfair": (
        "prune_optipfair.py",
        ("width", "width, data", "depth, last", "depth, data", "depth, width, data"),
    ),
    "llmcompressor": (
        "prune_llmcompressor.py",
        ("sparsegpt, 2:4", "sparsegpt, 50 %", "sparsegpt, 42", "wanda, 2:4", "wanda, 50 %", "wanda, 42"),
    ),
}
MASKS = ("llmcompressor",)
MODEL = "model"


def windows(bench: Bench) -> Any:
    """The calibration windows of methods that only score, int64 [64, 512], in the base model's tokens."""
    from minigpt_edge.data import corpus
    from minigpt_edge.prune.prepare import calibration_windows
    from minigpt_edge.prune.settings import prune_settings

    settings = prune_settings(bench.recipe)
    tokens = dataclasses.replace(settings, calibration_tokens=PUBLISHED_TOKENS)
    documents = corpus.read_split(bench.text.path, "train")
    return calibration_windows(documents, bench.base.path, bench.base.document_start, tokens)


def run(bench: Bench, peer: str, variant: str, fraction: float) -> Any:
    """The stage of one variant of one tool; EdgeError with the tool's last words if it fails."""
    from minigpt_edge_runtime.errors import EdgeError
    from minigpt_edge_runtime.files import sha256_file

    script, _ = PEERS[peer]

    def make(out: Path) -> dict[str, Any]:
        import numpy as np

        np.save(out / "windows.npy", windows(bench).numpy())
        command = [str(environments.python(peer)), str(HERE / script), str(bench.base.path)]
        options = ["--variant", variant, "--fraction", str(fraction), "--threads", str(bench.recipe.threads)]
        done = subprocess.run(
            [*command, str(out / MODEL), str(out / "windows.npy"), *options], capture_output=True, text=True
        )
        if done.returncode:
            raise EdgeError(f"{peer} ({variant}) failed: {done.stderr.strip().splitlines()[-1][:300]}")
        (out / "windows.npy").unlink()
        return {**json.loads((out / MODEL / "peer.json").read_text()), **_counted(out / MODEL)}

    return bench.stage(
        f"peer-{peer}",
        make,
        settings={"variant": variant, "fraction": fraction, "pins": environments.PINS[peer]},
        inputs={
            "model": bench.base.fingerprint,
            "corpus": bench.text.digest,
            **{name: sha256_file(HERE / name) for name in (script, "prune_common.py")},
        },
        code=("minigpt_edge.prune",),
    )


def _counted(model: Path) -> dict[str, Any]:
    """Parameters that are really there, and the share of zeros in the blocks' matrices."""
    from minigpt_edge.models.checkpoint import count_parameters, load_model

    loaded: Any = load_model(model)
    blocks = [p for name, p in loaded.named_parameters() if ".layers." in name and p.dim() == 2]
    zeros = sum(int((p == 0).sum()) for p in blocks) / sum(p.numel() for p in blocks)
    return {"parameters": count_parameters(loaded), "zeros": zeros}


def row(bench: Bench, peer: str, variant: str, fraction: float) -> dict[str, Any]:
    """What one variant left and how good it is before fine-tuning."""
    from minigpt_edge.evaluation.perplexity import evaluate
    from minigpt_edge_runtime.errors import EdgeError

    found: dict[str, Any] = {"peer": peer, "variant": variant}
    try:
        stage = run(bench, peer, variant, fraction)
        model = stage.path / MODEL
        validation = evaluate(model, bench.text.path / "validation.texts.json")
    except EdgeError as error:
        return {**found, "failed": error.message}
    return {
        **found,
        **stage.metrics,
        "sparsity": 1 - stage.metrics["parameters"] / bench.base.parameters,
        "validation_bits_per_byte": validation["bits_per_byte"],
        "test": bench.test(model, stage.digest),
    }


def recovered(bench: Bench, peer: str, variant: str, fraction: float) -> dict[str, Any]:
    """A peer's model fine-tuned on the tokens that ours gets, without a teacher: the tool has none."""
    pruned = run(bench, peer, variant, fraction)
    stage = bench.train(pruned.path / MODEL, pruned.digest, bench.recipe.recover_tokens)
    quality = bench.test(stage.path, stage.digest)
    return {"peer": peer, "variant": variant, "tokens": stage.metrics["tokens"], "test": quality}


def main() -> None:
    """Run every tool, fine-tune the best of each, write the result."""
    from minigpt_edge.prune.context import CHECKPOINT
    from minigpt_edge.recipe import PAPER_SPARSITY
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="Other pruning tools beside ours.")
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    bench = opened(given.threads)
    with bench.log:
        ours = bench.prune(sparsity=PAPER_SPARSITY)
        fraction = ours.metrics["sparsity"]
        rows = [row(bench, peer, variant, fraction) for peer in given.only for variant in PEERS[peer][1]]
        after = []
        for peer in given.only:
            worked = [r for r in rows if r["peer"] == peer and "failed" not in r]
            if worked and peer not in MASKS:
                best = min(worked, key=lambda r: r["validation_bits_per_byte"])
                after.append(recovered(bench, peer, best["variant"], fraction))
        for name, distill in (("ours", bench.recipe.distill), ("ours, no distillation", 0.0)):
            stage = bench.recover(ours, distill=distill)
            after.append({"peer": name, "test": bench.test(stage.path, stage.digest)})
        one_shot = {"sparsity": fraction, "test": bench.test(ours.path / CHECKPOINT, ours.digest)}
        versions = {peer: environments.PINS[peer] for peer in given.only}
        found = {"ours": one_shot, "rows": rows, "recovered": after, "versions": versions}
        write(RESULT, bench, found)


if __name__ == "__main__":
    main()
