"""The report of a build, from what its stages measured."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.settings import prune_settings
from minigpt_edge.recipe import Recipe
from minigpt_edge.report import build_report as parts
from minigpt_edge.report.advice import quality_warnings
from minigpt_edge.ship.finished import Finished, ModelStages
from minigpt_edge.ship.measure_stages import label, shipped_label
from minigpt_edge.ship.waterfall import waterfall
from minigpt_edge.stages.stage import Stage
from minigpt_edge_runtime._version import __version__


def make_report(finished: Finished, command: str) -> parts.BuildReport:
    """What report.json holds."""
    from minigpt_edge_runtime.device import device_info

    recipe, base = finished.context.recipe, finished.context.base
    recovered, stages = finished.models.recovered, finished.stages
    report = parts.BuildReport(
        format=1,
        name=finished.name,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        minigpt_edge=__version__,
        command=command,
        base_model=parts.BaseModelFacts(
            name=base.name,
            source=base.source,
            licence=base.licence,
            parameters=base.parameters,
            sha256=base.fingerprint,
        ),
        domain=recipe.domain,
        corpus=_corpus(finished.models.text.metrics),
        sparsity=sparsity_facts(recipe, finished.models.pruned.metrics),
        quality_torch=_quality_by_stage(finished.models),
        waterfall=waterfall(finished),
        parity={
            file.target.name: parts.Parity.model_validate(file.made.metrics["parity"])
            for file in finished.files
        },
        models=_models(finished),
        stages=tuple(
            parts.StageFacts(
                name=stage.manifest["stage"],
                seconds=stage.manifest["seconds"],
                peak_rss_mb=stage.manifest["peak_rss_mb"],
                reused=stage.cached,
            )
            for stage in stages
        ),
        environment={**device_info(), "threads": recipe.threads, **stages[-1].manifest["libraries"]},
        recipe={k: str(v) if isinstance(v, Path) else v for k, v in asdict(recipe).items()},
    )
    recovery = {"recovery": parts.Recovery.model_validate(recovered.metrics)} if recovered else {}
    pace = finished.models.pace
    budget = {"time": pace.budget} if pace and pace.budget else {}
    report = report.model_copy(update={**recovery, **budget, "ratios": ratios(report)})
    return report.model_copy(update={"warnings": quality_warnings(report)})


def _corpus(text: dict[str, Any]) -> parts.Corpus:
    splits, dropped, read = text["splits"], text["dropped"], text["documents_read"]
    return parts.Corpus(
        documents_read=read,
        dropped=dropped,
        near_duplicate_rate=dropped["near_duplicate"] / read,
        **({"pairs": text["pairs"]} if "pairs" in text else {}),
        split_rule=text["split_rule"],
        documents=sum(split["documents"] for split in splits.values()),
        bytes=sum(split["bytes"] for split in splits.values()),
        train_tokens=splits["train"]["base_tokens"],
        sha256=text["sha256"],
        sources=text["sources"],
        splits=splits,
        licence="; ".join(text_licences(text)) or None,
    )


def text_licences(text: dict[str, Any]) -> list[str]:
    """The licences of a corpus's sources, from its stage's metrics."""
    return [str(source["licence"]) for source in text["sources"] if source.get("licence")]


def sparsity_facts(recipe: Recipe, pruned: dict[str, Any]) -> parts.Sparsity:
    """What was asked for and what was removed, from the prune stage's metrics."""
    settings = prune_settings(recipe)
    fraction = settings.exact and "sparsity" in pruner_of(settings).options and recipe.plan is None
    limits = {name: getattr(recipe, name) for name in ("max_size", "max_params", "min_speedup", "threshold")}
    return parts.Sparsity(
        asked=settings.sparsity if fraction else None,
        pattern=settings.pattern,
        limits={name: limit for name, limit in limits.items() if limit is not None},
        achieved=pruned["sparsity"],
        parameters_before=pruned["parameters"]["dense"],
        parameters_after=pruned["parameters"]["kept"],
        vocabulary=pruned["vocabulary"],
        ffn_width=pruned["widths"],
        kv_groups=pruned["kv_groups"],
        method=recipe.method,
    )


def _quality_by_stage(models: ModelStages) -> parts.QualityByStage:
    found = {"dense": models.dense.metrics, "pruned": models.pruned.metrics["quality"]}
    if models.recovered:
        found["recovered"] = models.recovered.metrics["after"]
    return parts.QualityByStage.model_validate(found)


def _models(finished: Finished) -> tuple[parts.ModelFile, ...]:
    """The dense model's files, then those that ship."""
    models = []
    for (file_format, kind), stage in finished.baselines.items():
        role = "dense-f16" if (file_format, kind) == ("gguf", "f16") else "dense-quantized"
        name = label(file_format, kind)
        models.append(_measured(stage, label=f"dense {name}", role=role, quantization=name))
    for file in finished.files:
        made = file.made.metrics
        shipped = {
            "label": f"shipped {shipped_label(file.target, file.made)}",
            "role": "shipped",
            "quantization": label(file.target.format, made["type"]),
            "file": file.name(finished.name),
            "target": file.target.name,
            "tried": made["tried"],
            "mix": made["mix"],
            "validation": {
                key: file.measured.metrics["validation"][key]
                for key in parts.ValidationQuality.model_fields
                if key != "step"
            },
        }
        models.append(_measured(file.measured, **shipped))
    return tuple(models)


def _measured(stage: Stage, **facts: Any) -> parts.ModelFile:
    """A file with what a stage measured of it; `facts` are the others, "file" among them where it ships."""
    speed, quality = stage.metrics["speed"], stage.metrics["quality"]
    known = {key: speed["model"][key] for key in ("file", "bytes", "parameters", "sha256", "architecture")}
    known["quality"] = {key: quality[key] for key in parts.Quality.model_fields}
    known["speed"] = {key: speed[key] for key in parts.Speed.model_fields}
    return parts.ModelFile.model_validate({**known, **facts})


def ratios(report: parts.BuildReport) -> dict[str, float]:
    """The first shipped file against the dense model, each as shipped ÷ dense."""
    shipped, dense, twin = report.compared()
    before, after = report.quality_torch.dense, report.quality_torch.pruned
    pairs = {
        "bytes ÷ dense F16": (shipped.bytes, dense.bytes),
        "bits per byte ÷ dense F16": (shipped.quality.bits_per_byte, dense.quality.bits_per_byte),
        "decode tokens/s ÷ dense at the same type": (
            shipped.speed.decode_tokens_per_second,
            twin.speed.decode_tokens_per_second,
        ),
        "perplexity after pruning ÷ dense (validation)": (
            after.perplexity_per_base_token,
            before.perplexity_per_base_token,
        ),
    }
    return {name: round(a / b, 4) for name, (a, b) in pairs.items() if a and b}
