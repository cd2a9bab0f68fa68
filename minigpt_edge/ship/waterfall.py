"""The way from the dense model to the shipped file, each step of it measured on the validation windows."""

from __future__ import annotations

import math
from typing import Any

from minigpt_edge.prune.attribution import NEURONS, VOCABULARY
from minigpt_edge.report.build_report import Waterfall, WaterfallStep
from minigpt_edge.ship.finished import Finished
from minigpt_edge_export.targets import UNQUANTIZED

GROUPS = "KV groups"
BUDGETED = {VOCABULARY: "tokens", NEURONS: "neurons", GROUPS: "groups"}  # their names in the budget


def waterfall(finished: Finished) -> Waterfall:
    """The steps of a build, up to its first file."""
    models, file = finished.models, finished.files[0]
    pruned, recovered = models.pruned.metrics, models.recovered
    removed = removed_parts(pruned) or ["pruning"]
    scored, level = pruned["between"], pruned["quality"]["bits_per_byte"]
    between = [name for name in removed[:-1] if name in scored]
    if NEURONS in between and scored[NEURONS]["bits_per_byte"] > level:
        between.remove(NEURONS)  # The refit counts on the cut attention: without it the score says nothing.
    together = [name for name in removed if name not in between]
    joined = _joined(together)
    found = {"dense": models.dense.metrics}
    found |= {name: scored[name] for name in between}
    found[joined] = pruned["quality"]
    if recovered:
        found["recovery"] = recovered.metrics["after"]
    plain = file.made.metrics["type"] in UNQUANTIZED
    found["export" if plain else "quantization"] = file.measured.metrics["validation"]
    parts = {**{name: [name] for name in between}, joined: together}
    return Waterfall(
        steps=tuple(
            WaterfallStep(
                name=name,
                bits_per_byte=quality["bits_per_byte"],
                estimated=_estimated(pruned, parts.get(name, [])),
            )
            for name, quality in found.items()
        ),
        windows=models.dense.metrics["windows"],
        together=tuple(together) if len(together) > 1 else (),
    )


def removed_parts(pruned: dict[str, Any]) -> list[str]:
    """What a prune stage removed, by its metrics, in the order of the waterfall; nothing for masks."""
    tokens, kept_tokens = pruned["vocabulary"]
    removed = {VOCABULARY: kept_tokens < tokens, "blocks": bool(pruned.get("removed_blocks"))}
    if not removed["blocks"]:
        for name, (dense, kept) in ((NEURONS, pruned["widths"]), (GROUPS, pruned["kv_groups"])):
            removed[name] = list(kept) != (dense if isinstance(dense, list) else [dense] * len(kept))
    return [name for name, some in removed.items() if some]


def _estimated(pruned: dict[str, Any], parts: list[str]) -> float | None:
    """The rise that the budget expected of these parts before recovery, in bits per byte."""
    budget = pruned.get("estimated")
    if not budget or not parts or not set(parts) <= BUDGETED.keys():
        return None
    nats = sum(budget["before_recovery"][BUDGETED[name]] for name in parts)
    return float(nats * budget["base_tokens_per_byte"] / math.log(2))


def _joined(names: list[str]) -> str:
    """ "vocabulary, neurons and KV groups"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
