"""What recovery leaves of the estimated cost of tokens, FFN neurons and KV groups, each removed alone.

    python benchmarks/experiments/recovered_shares.py [--model NAME] [--domain NAME] [--tokens N ...]
        [--kinds KIND ...] [--calibration-tokens N] [--threads N]

Each kind alone gives up to a third of what the default build removes, at most half of what it has. Every
model, and the dense one, is then fine-tuned on the same tokens without a teacher; the share is the rise of
the loss over the dense model so trained, on every third validation window, ÷ the rise that was estimated
before recovery. Steps are finished stages. Writes benchmarks/results/recovered_shares-MODEL-DOMAIN.json, with
a run for each number of tokens; those of other numbers are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import Bench, opened, write
from benchmarks.lib.results import RESULTS

TOKENS = 20_480
EVERY = 3  # validation window is scored: all models are, on the same
NEVER = 1e9  # the share of kinds that are kept: they come last
KINDS = ("tokens", "neurons", "groups")
PART, MOST = 1 / 3, 0.5


def parameters(bench: Bench) -> dict[str, int]:
    """How many parameters the units of each kind have, and "all" the model."""
    from minigpt_edge.models import archs
    from minigpt_edge.models.checkpoint import read_config, stored_parameters
    from minigpt_edge.models.sizes import block_sizes

    config = read_config(bench.base.path)
    neuron, group, _ = archs.load_arch(config).block_parameters(config)
    sizes = block_sizes(config)
    row = config["hidden_size"] * (1 if config["tie_word_embeddings"] else 2)
    return {
        "tokens": config["vocab_size"] * row,
        "neurons": sum(width for width, _ in sizes) * neuron,
        "groups": sum(groups - 1 for _, groups in sizes) * group,
        "all": stored_parameters(bench.base.path),
    }


def pruned(bench: Bench, kind: str) -> Any:
    """The stage that has pruned units of one kind only, by the least-squares method."""
    from minigpt_edge.prune.context import PruneInputs
    from minigpt_edge.prune.methods.registry import pruner_of
    from minigpt_edge.prune.prepare import prepare
    from minigpt_edge.prune.result import write_pruned
    from minigpt_edge.prune.settings import fitted_settings
    from minigpt_edge.prune.stage import CODE
    from minigpt_edge.prune.unrecovered import Shares
    from minigpt_edge.recipe import PAPER_SPARSITY

    found = parameters(bench)
    sparsity = min(PART * PAPER_SPARSITY, MOST * found[kind] / found["all"])
    shares = Shares(**{other: 1.0 if other == kind else NEVER for other in KINDS})
    recipe = dataclasses.replace(bench.recipe, recover="tokens", sparsity=sparsity)
    settings = dataclasses.replace(fitted_settings(recipe, bench.base, bench.log), unrecovered=shares)
    inputs = PruneInputs(bench.base.path, bench.base.fingerprint, bench.text.path, settings)

    def make(out: Path) -> dict[str, Any]:
        context = prepare(inputs, out)
        return write_pruned(context, pruner_of(settings).apply(context))

    return bench.stage(
        f"pruned-{kind}",
        make,
        settings=dataclasses.asdict(settings),
        inputs={"model": bench.base.fingerprint, "corpus": bench.text.digest},
        code=CODE,
    )


def nats(quality: dict[str, Any]) -> float:
    """Per base token of the validation windows."""
    return math.log(quality["perplexity_per_base_token"])


def few_windows(bench: Bench) -> Path:
    """Every third of the validation windows, as a stage."""
    from minigpt_edge.data.windows import read_texts, write_texts

    name = "validation.texts.json"

    def make(out: Path) -> dict[str, Any]:
        start, windows = read_texts(bench.text.path / name)
        write_texts(out / name, start, "validation", windows[::EVERY])
        return {}

    stage = bench.stage("few-windows", make, settings={"every": EVERY}, inputs={"corpus": bench.text.digest})
    return Path(stage.path / name)


def trained(bench: Bench, checkpoint: Path, digest: str, tokens: int) -> tuple[float, float]:
    """Nats per base token before and after fine-tuning on so many tokens."""
    stage = bench.train(checkpoint, digest, tokens, validation=few_windows(bench), evaluations=1)
    return nats(stage.metrics["before"]), nats(stage.metrics["after"])


def measure(bench: Bench, tokens: int, kinds: list[str]) -> list[dict[str, Any]]:
    """A row for each kind."""
    from minigpt_edge.prune.context import CHECKPOINT

    dense, dense_after = trained(bench, bench.base.path, bench.base.fingerprint, tokens)
    rows = [{"kind": "dense", "before": dense, "after": dense_after}]
    for kind in kinds:
        stage = pruned(bench, kind)
        before, after = trained(bench, stage.path / CHECKPOINT, stage.digest, tokens)
        estimated = stage.metrics["estimated"]["before_recovery"]
        total = sum(estimated.values())
        rows.append(
            {
                "kind": kind,
                "sparsity": stage.metrics["sparsity"],
                "estimated_before": estimated,
                "nats_of_a_split": stage.metrics["estimated"]["nats_of_a_split"],
                "measured_before": before - dense,
                "measured_after": after - dense_after,
                "share_without_recovery": (before - dense) / total,
                "share": (after - dense_after) / total,
            }
        )
    return rows


def main() -> None:
    """Measure one model and domain, write the result."""
    from benchmarks.lib import stories
    from minigpt_edge.stages.packages import cache_dir
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="What recovery leaves of the estimated costs.")
    parser.add_argument("--model", help=f"a model, {stories.NAME} included [default: the default model]")
    parser.add_argument("--domain", default="law")
    parser.add_argument("--tokens", type=int, nargs="+", default=[TOKENS])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--calibration-tokens", type=int)
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    is_stories = given.model == stories.NAME
    model = str(stories.base_model(cache_dir())) if is_stories else given.model
    bench = opened(given.threads, domain=given.domain, model=model, dense=False)
    if given.calibration_tokens:
        bench.recipe = dataclasses.replace(bench.recipe, calibration_tokens=given.calibration_tokens)
    path = RESULTS / f"recovered_shares-{bench.base.name}-{given.domain}.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = {run["tokens"]: run["rows"] for run in known}
    with bench.log:
        for tokens in given.tokens:
            runs[tokens] = rows = measure(bench, tokens, given.kinds)
            for row in rows[1:]:
                estimated = sum(row["estimated_before"].values())
                text = f"{row['kind']} {row['share']:.3f} of {estimated:.3f} nats after {tokens:,} tokens"
                bench.log.line("share", text)
            found = [{"tokens": number, "rows": made} for number, made in sorted(runs.items())]
            write(path, bench, {"calibration_tokens": bench.recipe.calibration_tokens, "runs": found})


if __name__ == "__main__":
    main()
