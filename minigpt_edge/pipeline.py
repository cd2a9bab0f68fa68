"""`build`: the stages in order. Each is a directory that stays cached while nothing it depends on changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.data.stage import corpus_sources, corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.models import base_model
from minigpt_edge.prune.methods.registry import STRUCTURED
from minigpt_edge.prune.settings import check_recipe, shrink_settings
from minigpt_edge.prune.sizing import parse_count, parse_size
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


def recipe_of(
    *,
    recover_until: str | None = None,
    no_recover: bool = False,
    no_baseline: bool = False,
    threads: int | None = None,
    **options: Any,
) -> Recipe:
    """The recipe that options of the command `build` describe; the other options are `Recipe`'s own.

    Sizes and counts may be text, such as "40MB" and "60M"; paths may be text; threads None is all cores.

    Raises:
        TypeError: there is no such option.
        UsageError: two options contradict each other, or a value is not what it may be.
    """
    if no_recover and recover_until:
        raise UsageError("--no-recover and --recover-until contradict each other")
    for names, parse in (
        (("max_size", "max_memory"), parse_size),
        (("max_params",), parse_count),
        (("out", "work", "plan", "keep_tokens"), Path),
    ):
        options |= {name: parse(options[name]) for name in names if isinstance(options.get(name), str)}
    for name in ("corpus", "targets"):
        value = options.get(name, ())
        options |= {name: (value,) if isinstance(value, str | Path) else tuple(value)} if value else {}
    return Recipe(
        recover="no" if no_recover else recover_until or "tokens",
        baseline=not no_baseline,
        threads=threads or parallel.all_cores(),
        **options,
    )


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
    """What a build would keep of each block and how large its files would be; see `prune.preview`."""
    _checked(recipe)
    if shrink_settings(recipe).pattern != STRUCTURED:
        raise UsageError("--dry-run is for methods that remove units", "leave it out")
    context = _context(recipe, log)
    return plan_only(context, corpus_stage(context))


def _checked(recipe: Recipe) -> list[Target]:
    """The recipe's targets; UsageError for a target, domain, source or method that there is not."""
    corpus_sources(recipe)
    check_recipe(recipe)
    return [parse_target(name) for name in dict.fromkeys(recipe.targets)]


def _context(recipe: Recipe, log: Log) -> BuildContext:
    base = base_model.resolve_model(recipe.model, offline=recipe.offline)
    return BuildContext(recipe.work or cache_dir() / "work", recipe, base, log)


def _stages(context: BuildContext) -> ModelStages:
    """Corpus, dense model, pruned model and, unless the recipe does without, the recovered one."""
    text = corpus_stage(context)
    dense = dense_stage(context, text)
    pruned = prune_stage(context, text)
    return ModelStages(text, dense, pruned, recover_stage(context, text, dense, pruned))
