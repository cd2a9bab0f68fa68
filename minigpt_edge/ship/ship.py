"""The last part of a build: files for the targets, their measurements, the report, and the bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minigpt_edge.prune.context import IMPORTANCE
from minigpt_edge.report.build_report import BuildReport, read_report
from minigpt_edge.ship.bundling import assemble
from minigpt_edge.ship.export_stages import f16_stage, gguf_stage, onnx_stage
from minigpt_edge.ship.finished import Finished, ModelStages, TargetFile
from minigpt_edge.ship.job import Export
from minigpt_edge.ship.make_report import make_report
from minigpt_edge.ship.measure_stages import baseline_stage, measure_stage
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.bundle.manifest import MANIFEST, owned_files, read_manifest, verify_checksums
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error


@dataclass(frozen=True)
class Shipment:
    """Where a bundle goes: `out`, called `name`; `force` lets it replace the files of an earlier bundle."""

    out: Path
    name: str
    force: bool

    def check_output(self) -> None:
        """EdgeError if `out` holds something that is not a bundle of ours."""
        if self.out.is_file():
            raise EdgeError(f"{self.out} is a file", "choose another --out")
        if self.out.is_dir() and any(self.out.iterdir()) and not (self.out / MANIFEST).is_file():
            raise EdgeError(
                f"{self.out} is not empty and not a bundle of minigpt-edge, so nothing is written there",
                "choose another --out",
            )
        if (self.out / MANIFEST).is_file():
            read_manifest(self.out)

    def up_to_date(self, key: str) -> bool:
        """Whether `out` already holds this very build, whole; EdgeError if it is another and may not go."""
        if not (self.out / MANIFEST).is_file():
            return False
        same = read_manifest(self.out).get("key") == key
        problems = verify_checksums(self.out) if same else []
        if same and not problems:
            return True
        if not self.force:
            what = f"is damaged ({problems[0]})" if same else "holds another build"
            raise EdgeError(f"{self.out} {what}", "choose another --out, or replace its files with --force")
        return False

    def place(self, made: Path) -> None:
        """Move the files of `made` into `out`, the manifest last; an earlier bundle's own files go."""
        old = owned_files(self.out) if (self.out / MANIFEST).is_file() else []
        names = [path.relative_to(made) for path in sorted(made.rglob("*")) if path.is_file()]
        foreign = [name for name in names if (self.out / name).exists() and self.out / name not in old]
        if foreign:
            raise EdgeError(
                f"{self.out / foreign[0]} exists and belongs to no bundle, so it is not overwritten",
                "move it away, or choose another --out",
            )
        try:
            for name in sorted(names, key=lambda name: (name.name == MANIFEST, name)):
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(made / name, self.out / name)
            for path in old:
                if path.relative_to(self.out) not in names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise os_error(error, self.out) from error
        finally:
            shutil.rmtree(made, ignore_errors=True)


def ship(
    context: BuildContext, shipment: Shipment, targets: Sequence[Target], models: ModelStages, command: str
) -> tuple[BuildReport, bool]:
    """Export, quantize, measure and write the bundle; (report, whether it was there already).

    Args:
        command: how the build was asked for; the report quotes it.
    """
    finished = _finish(context, shipment.name, targets, models)
    if shipment.up_to_date(finished.key):
        return read_report(shipment.out / "report.json"), True
    report = make_report(finished, command)
    partial = shipment.out.with_name(f".{shipment.out.name}.partial")
    assemble(partial, finished, report)
    shipment.place(partial)
    return report, False


def _finish(context: BuildContext, name: str, targets: Sequence[Target], models: ModelStages) -> Finished:
    """Run the stages that make and measure the files of the targets, and those of the dense model."""
    recipe, base = context.recipe, context.base
    licence = {"license": base.licence} if base.licence else {}
    job = Export(
        work=context.work,
        checkpoint=models.checkpoint(),
        importance=models.pruned.path / IMPORTANCE,
        text=models.text,
        metadata={"name": name, "base_model": base.name, **licence},
        threads=recipe.threads,
        log=context.log,
        max_bytes=recipe.max_size,
        device=recipe.device,
    )
    sources: dict[Path, Stage] = {}
    files = []
    for target in targets:
        own = replace(job, checkpoint=models.checkpoint(target.name))
        if target.format == "gguf":
            source = sources[own.checkpoint] = sources.get(own.checkpoint) or f16_stage(own)
            made = gguf_stage(own, target, source)
        else:
            made = onnx_stage(own, target)
        files.append(TargetFile(target, made, measure_stage(own, target, made), own))
    baselines: dict[tuple[str, str], Stage] = {}
    if recipe.baseline:
        kinds = [("gguf", "f16"), *((file.target.format, file.made.metrics["type"]) for file in files)]
        baselines = {kind: baseline_stage(job, base, *kind) for kind in dict.fromkeys(kinds)}
    return Finished(name, context, models, job, tuple(sources.values()), tuple(files), baselines)
