"""`build`: the stages in order. Each is a directory that stays cached while nothing it depends on changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt_edge.data.sources import Source
from minigpt_edge.data.stage import corpus_sources, corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.models import base_model
from minigpt_edge.prune.prepare import CHECKPOINT
from minigpt_edge.prune.settings import check_recipe
from minigpt_edge.prune.sizing import parse_count, parse_size
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge.recover.stage import recover_stage
from minigpt_edge.ship.ship import Shipment, ship
from minigpt_edge.stages import parallel
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge.stages.stage import Stage, locked
from minigpt_edge_export.targets import parse_target
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.files import sha256_json


@dataclass(frozen=True)
class Built:
    """The outcome of a build: the bundle, the shrunk model's checkpoint, the report, and if all was there."""

    directory: Path
    checkpoint: Path
    report: dict[str, Any]
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
    sources = corpus_sources(recipe)
    targets = [parse_target(name) for name in dict.fromkeys(recipe.targets)]
    check_recipe(recipe)
    work = recipe.work or cache_dir() / "work"
    log.events.emit("start", command=command, minigpt_edge=__version__)
    base = base_model.resolve_model(recipe.model, offline=recipe.offline)
    parallel.barrier()  # the model is there
    log.line("model", f"{base.name}, {base.parameters / 1e6:.1f} M parameters, from {base.source}")
    out = recipe.out or Path(f"{base.name}-{recipe.domain or Path(recipe.corpus[0]).stem}".lower())
    place = out.resolve()  # "." has no name to put a folder beside
    name = f"out-{sha256_json(str(place))[:16]}"
    with locked(work, name, busy=f"another build is making {out}"):
        log.events.to_run_directory(work)
        shipment = Shipment(out=place, name=place.name, force=recipe.force)
        shipment.check_output()
        text, dense, pruned, recovered = _stages(work, recipe, base, sources, log)
        parallel.leave()
        return Built(
            out,
            recovered.path if recovered else pruned.path / CHECKPOINT,
            *ship(
                shipment,
                work=work,
                recipe=recipe,
                base=base,
                targets=targets,
                text=text,
                dense=dense,
                pruned=pruned,
                recovered=recovered,
                log=log,
                command=command,
            ),
        )


def take_part(recipe: Recipe, log: Log) -> None:
    """The part in `build` of a process that is not its first: calibration and fine-tuning.

    Raises:
        EdgeError: as `build`; or the first process failed.
    """
    parallel.barrier()
    base = base_model.resolve_model(recipe.model, offline=recipe.offline)
    _stages(recipe.work or cache_dir() / "work", recipe, base, corpus_sources(recipe), log)


def _stages(
    work: Path, recipe: Recipe, base: base_model.BaseModel, sources: Sequence[Source], log: Log
) -> tuple[Stage, Stage, Stage, Stage | None]:
    """Corpus, dense model, pruned model and, unless the recipe does without, the recovered one."""
    text = corpus_stage(work, recipe, base, sources, log)
    dense = dense_stage(work, recipe, base, text, log)
    pruned = prune_stage(work, recipe, base, text, log)
    return text, dense, pruned, recover_stage(work, recipe, base, pruned, text, dense, log)
