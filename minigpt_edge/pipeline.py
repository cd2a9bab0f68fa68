"""`build`: the stages in order. Each is a directory that stays cached while nothing it depends on changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.data.stage import corpus_sources, corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.models import base_model
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.settings import check_recipe, prune_settings
from minigpt_edge.prune.stage import plan_only, prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge.recover.stage import recover_stage
from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.ship.finished import ModelStages
from minigpt_edge.ship.ship import Shipment, ship
from minigpt_edge.stages import parallel
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge.stages.stage import locked
from minigpt_edge_export.targets import Target, parse_target
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


def build(recipe: Recipe, log: Log, command: str = "") -> Built:
    """Make a bundle, with every cached stage that still fits.

    Raises:
        UsageError: the recipe names something that does not exist.
        EdgeError: any stage failed; finished stages stay.
    """
    targets = _checked(recipe)
    log.events.emit("start", command=command, minigpt_edge=__version__)
    context = _context(recipe, log)
    base = context.base
    parallel.barrier()  # the model is there
    log.line("model", f"{base.name}, {base.parameters / 1e6:.1f} M parameters, from {base.source}")
    for note in base.notes:
        log.line("model", note)
    out = recipe.out or Path(f"{base.name}-{recipe.domain or Path(recipe.corpus[0]).stem}".lower())
    place = out.resolve()  # "." has no name to put a folder beside
    name = f"out-{sha256_json(str(place))[:16]}"
    with locked(context.work, name, busy=f"another build is making {out}"):
        log.events.to_run_directory(context.work)
        shipment = Shipment(out=place, name=place.name, force=recipe.force)
        shipment.check_output()
        models = _stages(context)
        parallel.leave()
        report, unchanged = ship(context, shipment, targets, models, command)
        return Built(out, models.checkpoint, report, unchanged)


def follow(recipe: Recipe, log: Log) -> None:
    """Calibrate and fine-tune together with the first process, which runs `build`.

    Raises:
        EdgeError: as `build`; or the first process failed.
    """
    parallel.barrier()  # the model is there
    _stages(_context(recipe, log))


def dry_run(recipe: Recipe, log: Log) -> dict[str, Any]:
    """What a build would keep of each block and how large its files would be; see `prune.result.preview`."""
    _checked(recipe)
    if not pruner_of(prune_settings(recipe)).sized:
        raise UsageError("--dry-run is for methods that remove units", "leave it out")
    context = _context(recipe, log)
    return plan_only(context, corpus_stage(context))


def _checked(recipe: Recipe) -> list[Target]:
    """The recipe's targets; UsageError for a target, domain, source or method that there is not."""
    corpus_sources(recipe)
    check_recipe(recipe)
    return [parse_target(name) for name in dict.fromkeys(recipe.targets)]


def _context(recipe: Recipe, log: Log) -> BuildContext:
    base = base_model.resolve_model(recipe.model, adapter=recipe.adapter, offline=recipe.offline)
    return BuildContext(recipe.work or cache_dir() / "work", recipe, base, log)


def _stages(context: BuildContext) -> ModelStages:
    """Corpus, dense model, pruned model and, unless the recipe does without, the recovered one."""
    text = corpus_stage(context)
    dense = dense_stage(context, text)
    pruned = prune_stage(context, text)
    return ModelStages(text, dense, pruned, recover_stage(context, text, dense, pruned))
