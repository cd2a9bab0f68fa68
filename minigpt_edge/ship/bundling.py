"""The files of a bundle: models, tokenizer, plan, report, card, what a device checks itself with."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.held_out import HELD_OUT, held_out_sample
from minigpt_edge.prune.prune import PLAN
from minigpt_edge.ship.export_stages import model_path
from minigpt_edge.ship.job import Export
from minigpt_edge.stages.stage import Stage
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.bundle.manifest import Contents, write_manifest
from minigpt_edge_runtime.bundle.parity import REFERENCE
from minigpt_edge_runtime.files import os_error, read_json, write_json, write_text
from minigpt_edge_runtime.formats.tokenizer_files import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_FILES

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel
    from minigpt_edge.recipe import Recipe

NOTICE = "NOTICE"


def file_name(name: str, target: Target, made: Stage) -> str:
    """Where a target's model file lies in the bundle; an ONNX model has a whole directory."""
    if target.format == "onnx":
        return f"{target.name}/model.onnx"
    return f"{name}-{made.metrics['type']}{'-mixed' * bool(made.metrics['mix'])}.gguf"


def assemble(
    directory: Path,
    job: Export,
    recipe: Recipe,
    base: BaseModel,
    plan: Path,
    files: Sequence[tuple[Target, Stage, Stage]],
    report: dict[str, Any],
    key: str,
) -> None:
    """Write the whole bundle into `directory`.

    Args:
        files: target, the stage that made its file, the stage that measured it.
        key: what tells this build from every other.
    """
    from minigpt_edge.report.page import write_report
    from minigpt_edge.ship.card import write_card, write_modelfile
    from minigpt_edge.ship.reference import reference_sample

    name, checkpoint = job.metadata["name"], job.checkpoint
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(parents=True)
        kinds = {}
        for target, made, _ in files:
            kinds[file_name(name, target, made)] = made.metrics["type"]
            source, copy = model_path(target, made), directory / file_name(name, target, made)
            if target.format == "onnx":
                shutil.copytree(source.parent, copy.parent)
            else:
                shutil.copyfile(source, copy)
        for file in TOKENIZER_FILES:
            if (checkpoint / file).exists():
                shutil.copyfile(checkpoint / file, directory / file)
        shutil.copyfile(plan, directory / PLAN)
    except OSError as error:
        raise os_error(error, directory) from error
    windows = read_json(job.text.path / "validation.texts.json")
    start, sample = windows["document_start"], windows["windows"][0]["text"]
    template = directory / CHAT_TEMPLATE
    write_report(report, directory)
    write_card(report, directory, prompt=" ".join(sample.split()[:4]))
    write_text(directory / NOTICE, _notice(report))
    write_json(directory / HELD_OUT, held_out_sample(job.text.path))
    write_json(directory / REFERENCE, reference_sample(job.reference()))
    if gguf := [file for file in kinds if file.endswith(".gguf")]:
        write_modelfile(
            directory,
            model_file=gguf[0],
            chat_template=template.read_text(encoding="utf-8") if template.exists() else None,
            stop=_stop_texts(checkpoint),
        )
    write_manifest(
        directory,
        Contents(
            name=name,
            model_files=list(kinds),
            base_model={
                "name": base.name,
                "source": base.source,
                "licence": base.licence,
                "sha256": base.fingerprint,
            },
            licences=[licence for licence in (base.licence, *text_licences(job.text)) if licence],
            domain=recipe.domain,
            corpus_sha256=job.text.metrics["sha256"],
            targets=[target.name for target, _, _ in files],
            document_start=start,
            checks={
                file: _check(directory / file, kind, sample, start, job.threads)
                for file, kind in kinds.items()
            },
            extra={"key": key, "sparsity": report["sparsity"]["achieved"], "source": recipe.source},
        ),
    )


def _check(model: Path, kind: str, text: str, start: str, threads: int) -> dict[str, Any]:
    """What `verify` computes again on a device, and how far a file may be from the checkpoint."""
    from minigpt_edge_export.verify import threshold_of
    from minigpt_edge_runtime.bundle.verify import make_check

    return {**make_check(model, text, start, threads), "threshold": dataclasses.asdict(threshold_of(kind))}


def text_licences(text: Stage) -> list[str]:
    """The licences of a corpus's sources."""
    return [str(source["licence"]) for source in text.metrics["sources"] if source.get("licence")]


def _notice(report: dict[str, Any]) -> str:
    """Whose work the files are made of, and under which terms each came."""
    base = report["base_model"]
    unknown = "not stated where it was taken from: look it up before you share this"
    lines = [
        f"{report['name']}, made by minigpt-edge {report['minigpt_edge']}",
        "",
        f"The model files are a changed copy of the weights of {base['name']}: parts were removed, the rest",
        "was refitted and fine-tuned, and stored with fewer bits.",
        f"  from: {base['source']}",
        f"  licence: {base['licence'] or unknown}",
        "",
        "They were calibrated and fine-tuned on texts from, and held-out.json quotes:",
    ]
    for source in report["corpus"]["sources"]:
        where = source.get("package") or source.get("dataset") or source.get("path") or source.get("kind")
        lines += [f"  {where}", f"    licence: {source.get('licence') or unknown}"]
    return "\n".join(lines) + "\n"


def _stop_texts(checkpoint: Path) -> list[str]:
    """The text of the end token, for programs that stop by text."""
    end = read_json(checkpoint / "config.json").get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    added = {token["id"]: token["content"] for token in read_json(checkpoint / TOKENIZER)["added_tokens"]}
    return [added[index] for index in ends if index in added]
