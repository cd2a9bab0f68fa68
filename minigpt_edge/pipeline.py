"""`build`: the stages in order. Each is a directory that stays cached while nothing it depends on changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigpt_edge.data.stage import corpus_sources, corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.models import base_model
from minigpt_edge.pace.budget import LATE
from minigpt_edge.pace.stage import choose_calibration, choose_recovery, seconds_of
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.settings import check_recipe, prune_settings
from minigpt_edge.prune.stage import plan_only, prune_stage
from minigpt_edge.recipe import Recipe, time_text
from minigpt_edge.recover.stage import recover_targets, wanted_grid
from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.ship.finished import ModelStages
from minigpt_edge.ship.ship import Shipment, ship
from minigpt_edge.stages import parallel
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.device import CPU, describe, resolve
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge.stages.stage import locked
from minigpt_edge_export.targets import Target, list_targets, parse_target
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import sha256_json


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the bundle, the pruned model's checkpoint, the report, and if all was there."""

    directory: Path
    checkpoint: Path
    report: BuildReport
    unchanged: bool


def build(
    recipe: Recipe, log: Log, command: str = "", clock: Callable[[], float] = time.perf_counter
) -> Built:
    """Make a bundle, with every cached stage that still fits.

    Args:
        command: how the build was asked for; the report quotes it.
        clock: what speeds are measured by, where the recipe has a time.

    Raises:
        UsageError: the recipe names something that does not exist.
        EdgeError: any stage failed, or the time is too short; finished stages stay.
    """
    targets = _checked(recipe)
    log.events.emit("start", command=command, minigpt_edge=__version__)
    context = replace(_context(recipe, log), clock=clock)
    base = context.base
    parallel.barrier()  # the model is there
    log.line("model", f"{base.name}, {base.parameters / 1e6:.1f} M parameters, from {base.source}")
    for note in base.notes:
        log.line("model", note)
    for target in targets:
        if target.note:
            log.line("targets", f"{target.name}: {target.note}")
        if target.needs_training and wanted_grid(recipe, target) is None:
            reason = "rounding to it loses most of what the model knows; recovery could train for it"
            log.line("targets", f"{target.name} is quantized after training: {reason}", warning=True)
    out = recipe.out or Path(f"{base.name}-{recipe.domain or Path(recipe.corpus[0]).stem}".lower())
    place = out.resolve()  # "." has no name to put a folder beside
    name = f"out-{sha256_json(str(place))[:16]}"
    with locked(context.work, name, busy=f"another build is making {out}"):
        log.events.to_run_directory(context.work)
        shipment = Shipment(out=place, name=place.name, force=recipe.force)
        shipment.check_output()
        context, models = _stages(context, targets)
        parallel.leave()
        report, unchanged = ship(context, shipment, targets, models, command)
        _say_if_late(context, models, report)
        return Built(out, models.checkpoint(), report, unchanged)


def follow(recipe: Recipe, log: Log) -> None:
    """Calibrate and fine-tune together with the first process, which runs `build`.

    Raises:
        EdgeError: as `build`; or the first process failed.
    """
    parallel.barrier()  # the model is there
    _stages(_context(recipe, log), _checked(recipe))


def dry_run(recipe: Recipe, log: Log) -> dict[str, Any]:
    """What a build would keep of each block and how large its files would be; see `prune.result.preview`."""
    _checked(recipe)
    if not pruner_of(prune_settings(recipe)).sized:
        raise UsageError("--dry-run is for methods that remove units", "leave it out")
    context = _context(recipe, log)
    text = corpus_stage(context, to_train=recipe.time is None)
    if recipe.time is not None:
        context, _ = choose_calibration(context, text, dense_stage(context, text))
    return plan_only(context, text)


def _checked(recipe: Recipe) -> list[Target]:
    """The recipe's targets; UsageError for a target, domain, source or method that there is not, or if it
    trains for none of the targets."""
    corpus_sources(recipe)
    check_recipe(recipe)
    targets = [parse_target(name) for name in dict.fromkeys(recipe.targets)]
    if recipe.qat and not any(target.grid for target in targets):
        trained = ", ".join(target.name for target in list_targets() if target.grid)
        raise UsageError("--qat does nothing for these targets", f"it trains for {trained}; leave it out")
    return targets


def _context(recipe: Recipe, log: Log) -> BuildContext:
    device = resolve(recipe.device)
    if recipe.device != CPU:
        log.line("device", describe(device, recipe.device))
    base = base_model.resolve_model(recipe.model, adapter=recipe.adapter, offline=recipe.offline)
    return BuildContext(recipe.work or cache_dir() / "work", replace(recipe, device=device), base, log)


def _stages(context: BuildContext, targets: Sequence[Target]) -> tuple[BuildContext, ModelStages]:
    """Corpus, dense model, pruned model and, unless the recipe does without, the recovered ones.

    The context is the one given, with tokens of calibration and recovery chosen where it has a time.
    """
    text = corpus_stage(context, to_train=context.recipe.time is None)
    dense, pace = dense_stage(context, text), None
    if context.recipe.time is not None:
        context, pace = choose_calibration(context, text, dense)
    pruned = prune_stage(context, text)
    if pace is not None:
        context, pace = choose_recovery(context, pace, pruned)
    recoveries = recover_targets(context, targets, text, dense, pruned)
    return context, ModelStages(text, dense, pruned, recoveries, pace)


def _say_if_late(context: BuildContext, models: ModelStages, report: BuildReport) -> None:
    """Say so if the stages took much longer than the build was given."""
    asked, took = context.recipe.time, sum(stage.seconds or 0 for stage in report.stages)
    took -= models.text.manifest["seconds"] - seconds_of(models.text)  # downloads
    if asked is not None and took > LATE * asked:
        context.log.line(
            "time",
            f"the build took {time_text(took)} where {time_text(asked)} was asked for: the machine became "
            "slower than when its speed was measured, as it does while other programs use it",
            warning=True,
        )
