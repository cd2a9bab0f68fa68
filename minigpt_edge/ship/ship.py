"""The last part of a build: files for the targets, their measurements, the report, and the bundle."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.methods.registry import RANK
from minigpt_edge.prune.prepare import CHECKPOINT
from minigpt_edge.prune.prune import IMPORTANCE, PLAN
from minigpt_edge.prune.settings import shrink_settings
from minigpt_edge.ship.bundling import assemble, file_name, text_licences
from minigpt_edge.ship.export_stages import f16_stage, gguf_stage, onnx_stage
from minigpt_edge.ship.job import Export
from minigpt_edge.ship.measure_stages import baseline_stage, label, measure_stage
from minigpt_edge.stages.stage import Stage
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.bundle.manifest import MANIFEST, owned_files, read_manifest, verify_checksums
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json, sha256_json

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log

_SPEED = (
    "load_seconds",
    "ttft_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "itl_ms",
    "peak_rss_mb",
    "threads",
)
_QUALITY = ("bits_per_byte", "stderr", "perplexity_per_base_token", "nll", "tokens", "bytes", "base_tokens")


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
    shipment: Shipment,
    *,
    work: Path,
    recipe: Recipe,
    base: BaseModel,
    targets: Sequence[Target],
    text: Stage,
    dense: Stage,
    pruned: Stage,
    recovered: Stage | None,
    log: Log,
    command: str,
) -> tuple[dict[str, Any], bool]:
    """Export, quantize, measure and write the bundle; (report, whether it was there already)."""
    checkpoint = recovered.path if recovered else pruned.path / CHECKPOINT
    job = Export(
        work=work,
        checkpoint=checkpoint,
        importance=pruned.path / IMPORTANCE,
        text=text,
        metadata={
            "name": shipment.name,
            "base_model": base.name,
            **({"license": base.licence} if base.licence else {}),
        },
        threads=recipe.threads,
        log=log,
        max_bytes=recipe.max_size,
    )
    f16 = f16_stage(job) if any(target.format == "gguf" for target in targets) else None
    files: list[tuple[Target, Stage, Stage]] = []
    for target in targets:
        made = gguf_stage(job, target, f16) if f16 and target.format == "gguf" else onnx_stage(job, target)
        files.append((target, made, measure_stage(work, target, made, text, recipe.threads, log)))
    baselines: dict[tuple[str, str], Stage] = {}
    if recipe.baseline:
        kinds = [("gguf", "f16"), *((target.format, made.metrics["type"]) for target, made, _ in files)]
        for kind in dict.fromkeys(kinds):
            baselines[kind] = baseline_stage(work, base, *kind, text, recipe.threads, log)
    stages = [
        text,
        dense,
        pruned,
        recovered,
        f16,
        *(s for _, *pair in files for s in pair),
        *baselines.values(),
    ]
    finished = [stage for stage in stages if stage is not None]
    key = sha256_json(
        {"name": shipment.name, "version": __version__, "stages": [s.manifest["key"] for s in finished]}
    )
    if shipment.up_to_date(key):
        return read_json(shipment.out / "report.json"), True
    report = _report(
        shipment, recipe, base, text, dense, pruned, recovered, files, baselines, finished, command
    )
    partial = shipment.out.with_name(f".{shipment.out.name}.partial")
    assemble(partial, job, recipe, base, pruned.path / PLAN, files, report, key)
    shipment.place(partial)
    return report, False


def _report(
    shipment: Shipment,
    recipe: Recipe,
    base: BaseModel,
    text: Stage,
    dense: Stage,
    pruned: Stage,
    recovered: Stage | None,
    files: list[tuple[Target, Stage, Stage]],
    baselines: dict[tuple[str, str], Stage],
    stages: list[Stage],
    command: str,
) -> dict[str, Any]:
    """What `report.json` holds."""
    from minigpt_edge_runtime.device import device_info

    models = []
    for (file_format, kind), stage in baselines.items():
        role = "dense-f16" if (file_format, kind) == ("gguf", "f16") else "dense-quantized"
        name = label(file_format, kind)
        models.append(_model(f"dense {name}", role, name, stage.metrics))
    for target, made, measured in files:
        kind = label(target.format, made.metrics["type"])
        mixed = " mixed" * bool(made.metrics["mix"])
        entry = _model(f"shipped {kind}{mixed}", "shipped", kind, measured.metrics)
        entry["file"] = file_name(shipment.name, target, made)
        models.append(
            {**entry, "target": target.name, "tried": made.metrics["tried"], "mix": made.metrics["mix"]}
        )
    report: dict[str, Any] = {
        "format": 1,
        "name": shipment.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minigpt_edge": __version__,
        "command": command,
        "base_model": {
            "name": base.name,
            "source": base.source,
            "licence": base.licence,
            "parameters": base.parameters,
            "sha256": base.fingerprint,
        },
        "domain": recipe.domain,
        "corpus": _corpus_facts(text),
        "sparsity": _sparsity_facts(recipe, pruned.metrics),
        "quality_torch": {
            "dense": dense.metrics,
            "pruned": pruned.metrics["quality"],
            **({"recovered": recovered.metrics["after"]} if recovered else {}),
        },
        "parity": {target.name: made.metrics["parity"] for target, made, _ in files},
        "models": models,
        "stages": [
            {
                "name": stage.manifest["stage"],
                "seconds": stage.manifest["seconds"],
                "peak_rss_mb": stage.manifest["peak_rss_mb"],
                "reused": stage.cached,
            }
            for stage in stages
        ],
        "environment": {**device_info(), "threads": recipe.threads, **stages[-1].manifest["libraries"]},
        "recipe": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(recipe).items()},
    }
    if recovered:
        report["recovery"] = recovered.metrics
    report["ratios"] = ratios(report)
    return report


def _corpus_facts(text: Stage) -> dict[str, Any]:
    splits, dropped, read = (text.metrics[name] for name in ("splits", "dropped", "documents_read"))
    return {
        "documents_read": read,
        "dropped": dropped,
        "near_duplicate_rate": dropped["near_duplicate"] / read,
        **({"pairs": text.metrics["pairs"]} if "pairs" in text.metrics else {}),
        "split_rule": text.metrics["split_rule"],
        "documents": sum(split["documents"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "train_tokens": splits["train"]["base_tokens"],
        "sha256": text.metrics["sha256"],
        "sources": text.metrics["sources"],
        "splits": splits,
        "licence": "; ".join(text_licences(text)) or None,
    }


def _sparsity_facts(recipe: Recipe, shrunk: dict[str, Any]) -> dict[str, Any]:
    settings = shrink_settings(recipe)
    fraction = settings.exact and settings.pattern != RANK and recipe.plan is None
    return {
        "asked": settings.sparsity if fraction else None,
        "pattern": settings.pattern,
        "limits": {
            name: getattr(recipe, name)
            for name in ("max_size", "max_params", "min_speedup", "threshold")
            if getattr(recipe, name) is not None
        },
        "achieved": shrunk["sparsity"],
        "parameters_before": shrunk["parameters"]["dense"],
        "parameters_after": shrunk["parameters"]["kept"],
        "vocabulary": shrunk["vocabulary"],
        "ffn_width": shrunk["widths"],
        "kv_groups": shrunk["kv_groups"],
        "method": recipe.method,
    }


def _model(label: str, role: str, kind: str, measured: dict[str, Any]) -> dict[str, Any]:
    speed, quality = measured["speed"], measured["quality"]
    return {
        "label": label,
        "role": role,
        "quantization": kind,
        **{key: speed["model"][key] for key in ("file", "bytes", "parameters", "sha256", "architecture")},
        "quality": {
            **{key: quality[key] for key in _QUALITY},
            "windows": quality["windows"],
            "per_window": quality["per_window"],
        },
        "speed": {key: speed[key] for key in _SPEED},
    }


def ratios(report: dict[str, Any]) -> dict[str, float]:
    """The first shipped file against the dense model, each as shipped ÷ dense."""
    from minigpt_edge.report.tables import compared, get

    shipped, dense, twin = compared(report)
    torch = report["quality_torch"]
    pruned, before = (get(torch, key, "perplexity_per_base_token") for key in ("pruned", "dense"))
    pairs = {
        "bytes ÷ dense F16": (shipped.get("bytes"), dense.get("bytes")),
        "bits per byte ÷ dense F16": (
            get(shipped, "quality", "bits_per_byte"),
            get(dense, "quality", "bits_per_byte"),
        ),
        "decode tokens/s ÷ dense at the same type": (
            get(shipped, "speed", "decode_tokens_per_second"),
            get(twin, "speed", "decode_tokens_per_second"),
        ),
        "perplexity after pruning ÷ dense (validation)": (pruned, before),
    }
    return {name: round(a / b, 4) for name, (a, b) in pairs.items() if a and b}
