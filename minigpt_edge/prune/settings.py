"""What a recipe and its targets mean for pruning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minigpt_edge.models import base_model
from minigpt_edge.models.checkpoint import read_config
from minigpt_edge.models.sizes import stock_groups
from minigpt_edge.prune.context import Limit, PruneSettings
from minigpt_edge.prune.methods.registry import METHODS, get_method, pruner_of
from minigpt_edge.prune.unrecovered import AFTER_RECOVERY, WITHOUT_RECOVERY
from minigpt_edge.recipe import PAPER_SPARSITY, Recipe
from minigpt_edge.stages.console import Log
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime.errors import EdgeError, UsageError

WINDOW = 512  # tokens of a window or sequence that calibration and training read, if the context has so many


# Fields of a recipe that only some pruners take.
_OPTIONS = (
    *("sparsity", "threshold", "embedding_threshold", "reductions", "widths", "refit", "plan"),
    *("max_size", "max_params", "min_speedup", "keep_tokens"),
)


def check_recipe(recipe: Recipe) -> None:
    """UsageError if the recipe's method is unknown, or can't do what the recipe asks beside it."""
    method = get_method(recipe.method)
    pattern = recipe.pattern or method.patterns[0]
    pruner = method.pruner(pattern)
    if not pruner.recovers and recipe.recover != "no":
        raise UsageError("fine-tuning would undo the low rank of the matrices", "add --no-recover")
    if pruner.masks and recipe.lora_rank and recipe.recover != "no":
        raise UsageError(
            "merged adapters would fill the zeros of a mask", "leave --lora-rank out, or add --no-recover"
        )
    for name in _OPTIONS:
        if getattr(recipe, name) is not None and name not in pruner.options:
            fitting = [m.name for m in METHODS.values() if any(name in p.options for p in m.pruners)]
            raise UsageError(
                f"--{name.replace('_', '-')} does nothing with {recipe.method} ({pattern})",
                f"leave it out, or choose another method or pattern: {', '.join(fitting)} can use it",
            )
    if recipe.widths == "global" and pruner.needs_refit:
        raise UsageError(
            f"{recipe.method} scores blocks one after another, so there is no cut over all of them at once",
            "give --widths free or equal, or choose another method: `minigpt-edge methods`",
        )
    if recipe.refit is False and pruner.needs_refit:
        raise UsageError(
            f"{recipe.method} scores a unit by what a refit can't make up for, so it always refits",
            "leave --no-refit out, or choose another method: `minigpt-edge methods`",
        )


def prune_settings(recipe: Recipe) -> PruneSettings:
    """What a recipe says of pruning, the method's own choices filled in; UsageError as `check_recipe`."""
    check_recipe(recipe)
    method = get_method(recipe.method)
    pattern = recipe.pattern or method.patterns[0]
    pruner = method.pruner(pattern)
    sparsity = recipe.sparsity
    if sparsity is None:
        sparsity = pruner.default_sparsity(pattern) or PAPER_SPARSITY
    target = next((name for name in recipe.targets if name.startswith("gguf")), recipe.targets[0])
    limit = None
    for kind, value in (
        ("bytes", recipe.max_size),
        ("parameters", recipe.max_params),
        ("speedup", recipe.min_speedup),
    ):
        limit = Limit(kind, value, target) if value is not None else limit
    compensation = {None: None, True: "least_squares", False: "none"}[recipe.refit]
    return PruneSettings(
        sparsity=sparsity,
        method=recipe.method,
        widths=recipe.widths or pruner.widths,
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
        unrecovered=WITHOUT_RECOVERY if recipe.recover == "no" else AFTER_RECOVERY,
    )


def fitted_settings(recipe: Recipe, base: base_model.BaseModel, log: Log) -> PruneSettings:
    """`prune_settings`, limited to what the targets and transformers take of this architecture, which is
    said."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.layout import layout_of, takes_uneven

    settings = replace(prune_settings(recipe), window=min(WINDOW, base.context))
    if not pruner_of(settings).sized:
        return settings
    gguf = any(parse_target(name).format == "gguf" for name in recipe.targets)
    if not gguf or takes_uneven(decoder := read_checkpoint(base.path)):
        if settings.widths == "equal" and settings.threshold is None and recipe.plan is None:
            _say_groups(base, log)
        return settings
    log.line(
        "targets",
        f"llama.cpp's {layout_of(decoder).name} takes whole attention and one width for all blocks: "
        "planned so; ONNX alone would not need it",
    )
    return replace(settings, whole_attention=True, widths="equal")


def _say_groups(base: base_model.BaseModel, log: Log) -> None:
    """Say which numbers of KV groups equal blocks may keep, if not all."""
    config = read_config(base.path)
    groups, allowed = config["num_key_value_heads"], stock_groups(config)
    if len(allowed) < groups:
        kept = f"{', '.join(map(str, allowed))} of {groups}" if len(allowed) > 1 else f"all {groups}"
        log.line(
            "widths",
            f"equal blocks keep {kept} KV groups, as transformers loads {config['model_type']} models: "
            "FFN neurons give the rest",
        )


def given_plan(recipe: Recipe) -> Path | None:
    """The plan to follow; EdgeError if the file does not exist."""
    if recipe.plan and not recipe.plan.is_file():
        raise EdgeError(f"there is no plan {recipe.plan}", "check --plan")
    return recipe.plan
