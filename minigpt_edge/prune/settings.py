"""What a recipe and its targets mean for pruning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minigpt_edge.models import base_model
from minigpt_edge.prune.decide import Limit, ShrinkSettings
from minigpt_edge.prune.methods.registry import STRUCTURED, get_method
from minigpt_edge.prune.vocabulary.terms import read_terms
from minigpt_edge.recipe import PAPER_SPARSITY, Recipe
from minigpt_edge.stages.console import Log
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime.errors import EdgeError

WINDOW = 512  # tokens of a window or sequence that calibration and training read, if the context has so many


def shrink_settings(recipe: Recipe) -> ShrinkSettings:
    """What a recipe says of pruning, the method's own choices filled in."""
    method = get_method(recipe.method)
    pattern = recipe.pattern or method.patterns[0]
    sparsity = PAPER_SPARSITY if recipe.sparsity is None else recipe.sparsity
    if ":" in pattern and recipe.sparsity is None:
        n, m = pattern.split(":")
        sparsity = int(n) / int(m)
    target = next((name for name in recipe.targets if name.startswith("gguf")), recipe.targets[0])
    limit = None
    for kind, value in (
        ("bytes", recipe.max_size),
        ("parameters", recipe.max_params),
        ("speedup", recipe.min_speedup),
    ):
        limit = Limit(kind, value, target) if value is not None else limit
    compensation = {None: None, True: "least_squares", False: "none"}[recipe.refit]
    return ShrinkSettings(
        sparsity=sparsity,
        method=recipe.method,
        widths=recipe.widths or method.widths,
        min_count=recipe.min_count,
        calibration_tokens=recipe.calibration_tokens,
        window=WINDOW,
        seed=recipe.seed,
        threads=recipe.threads,
        pattern=pattern,
        compensation=compensation,
        limit=limit,
        threshold=recipe.threshold,
        reductions=recipe.reductions or "",
        embedding_threshold=recipe.embedding_threshold,
    )


def fitted_settings(recipe: Recipe, base: base_model.BaseModel, log: Log) -> ShrinkSettings:
    """`shrink_settings`, held to what the targets can carry of this architecture, which is said."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.layout import layout_of, takes_uneven

    settings = replace(shrink_settings(recipe), window=min(WINDOW, base.context))
    gguf = any(parse_target(name).format == "gguf" for name in recipe.targets)
    if settings.pattern != STRUCTURED or not gguf or takes_uneven(decoder := read_checkpoint(base.path)):
        return settings
    log.line(
        "targets",
        f"llama.cpp's {layout_of(decoder).architecture} takes whole attention and one width for all blocks: "
        "planned so; ONNX alone would not need it",
    )
    return replace(settings, whole_attention=True, widths="equal")


def keep_terms(recipe: Recipe) -> list[str]:
    """The terms whose tokens have to stay."""
    return read_terms(recipe.keep_tokens) if recipe.keep_tokens else []


def given_plan(recipe: Recipe) -> Path | None:
    """The plan to follow; EdgeError if the file does not exist."""
    if recipe.plan and not recipe.plan.is_file():
        raise EdgeError(f"there is no plan {recipe.plan}", "check --plan")
    return recipe.plan
