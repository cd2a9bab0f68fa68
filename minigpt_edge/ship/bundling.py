"""The files of a bundle: models, tokenizer, plan, report, card, and what a device checks itself with."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from minigpt_edge.data.held_out import HELD_OUT, held_out_sample
from minigpt_edge.data.windows import read_texts
from minigpt_edge.prune.context import PLAN
from minigpt_edge.report.build_report import BuildReport
from minigpt_edge.ship.export_stages import model_path
from minigpt_edge.ship.finished import Finished
from minigpt_edge.ship.make_report import text_licences
from minigpt_edge_runtime.bundle.manifest import Contents, write_manifest
from minigpt_edge_runtime.bundle.parity import REFERENCE
from minigpt_edge_runtime.files import os_error, write_json, write_text
from minigpt_edge_runtime.formats.gguf_header import read_header
from minigpt_edge_runtime.formats.tokenizer_files import (
    DEFAULT,
    TOKENIZER_FILES,
    chat_templates,
    read_tokenizer_config,
    special_texts,
)

NOTICE = "NOTICE"


def assemble(directory: Path, finished: Finished, report: BuildReport) -> None:
    """Write the whole bundle into `directory`."""
    from minigpt_edge.report.page import write_report
    from minigpt_edge.ship.card import write_card
    from minigpt_edge.ship.modelfile import modelfile, stop_texts
    from minigpt_edge.ship.reference import reference_sample

    job, base, recipe = finished.job, finished.context.base, finished.context.recipe
    text, files = job.text, {file.name(finished.name): file for file in finished.files}
    _copy(directory, finished)
    start, windows = read_texts(text.path / "validation.texts.json")
    sample = windows[0].text
    write_report(report, directory)
    write_card(report, directory, prompt=" ".join(sample.split()[:4]))
    write_text(directory / NOTICE, _notice(report))
    write_json(directory / HELD_OUT, held_out_sample(text.path))
    references = _reference_names(finished)
    for checkpoint, job_of in {file.job.checkpoint: file.job for file in finished.files}.items():
        write_json(directory / references[checkpoint], reference_sample(job_of.reference()))
    if gguf := [name for name in files if name.endswith(".gguf")]:
        settings = read_tokenizer_config(directory)
        template = chat_templates(directory, settings).get(DEFAULT)
        adds_bos = bool(read_header(directory / gguf[0]).metadata.get("tokenizer.ggml.add_bos_token"))
        stops = stop_texts(job.checkpoint)
        made = modelfile(gguf[0], template, stops, special_texts(settings), adds_bos)
        write_text(directory / "Modelfile", made)
    write_manifest(
        directory,
        Contents(
            name=finished.name,
            model_files=list(files),
            base_model=report.base_model.model_dump(exclude={"parameters"}),
            licences=[licence for licence in (base.licence, *text_licences(text.metrics)) if licence],
            domain=recipe.domain,
            corpus_sha256=text.metrics["sha256"],
            targets=[file.target.name for file in finished.files],
            document_start=start,
            checks={
                name: {
                    **_check(directory / name, file.made.metrics["type"], sample, start, job.threads),
                    "reference": references[file.job.checkpoint],
                }
                for name, file in files.items()
            },
            extra={"key": finished.key, "sparsity": report.sparsity.achieved, "source": recipe.source},
        ),
    )


def _copy(directory: Path, finished: Finished) -> None:
    """Copy model files, tokenizer and plan into a fresh `directory`."""
    checkpoint = finished.job.checkpoint
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(parents=True)
        for file in finished.files:
            source, copy = model_path(file.target, file.made), directory / file.name(finished.name)
            if file.target.format == "onnx":
                shutil.copytree(source.parent, copy.parent)
            else:
                shutil.copyfile(source, copy)
        for name in TOKENIZER_FILES:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, directory / name)
        shutil.copyfile(finished.models.pruned.path / PLAN, directory / PLAN)
    except OSError as error:
        raise os_error(error, directory) from error


def _reference_names(finished: Finished) -> dict[Path, str]:
    """The checkpoint of each file -> the name of the reference that the file is compared with."""
    checkpoints = dict.fromkeys(file.job.checkpoint for file in finished.files)
    return {
        path: REFERENCE if not number else f"reference-{number + 1}.json"
        for number, path in enumerate(checkpoints)
    }


def _check(model: Path, kind: str, text: str, start: str, threads: int) -> dict[str, Any]:
    """What `verify` computes again on a device, and how far a file may be from the checkpoint."""
    from minigpt_edge_export.verify import threshold_of
    from minigpt_edge_runtime.bundle.verify import make_check

    return {**make_check(model, text, start, threads), "threshold": dataclasses.asdict(threshold_of(kind))}


def _notice(report: BuildReport) -> str:
    """Whose work the files are made of, and under which terms each came."""
    base = report.base_model
    unknown = "not stated where it was taken from: look it up before you share this"
    lines = [
        f"{report.name}, made by minigpt-edge {report.minigpt_edge}",
        "",
        f"The model files are a changed copy of the weights of {base.name}: parts were removed, the rest",
        "was refitted and fine-tuned, and stored with fewer bits.",
        f"  from: {base.source}",
        f"  licence: {base.licence or unknown}",
        "",
        "They were calibrated and fine-tuned on texts from, and held-out.json quotes:",
    ]
    for source in report.corpus.sources:
        where = source.get("package") or source.get("dataset") or source.get("path") or source.get("kind")
        lines += [f"  {where}", f"    licence: {source.get('licence') or unknown}"]
    return "\n".join(lines) + "\n"
