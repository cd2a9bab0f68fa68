"""What is measured, which exporter made it with which options, and how an export is run and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environments

from minigpt_edge_runtime.files import read_json, sha256_file, sha256_json, write_json

HERE = Path(__file__).resolve().parent
EXPORTER = HERE.parents[1] / "export" / "minigpt_edge_export"
UNIFORM, NONUNIFORM = "uniform", "nonuniform"
BOTH = ("ort", "genai")


@dataclass(frozen=True)
class Candidate:
    """One file to measure.

    Attributes:
        model: which of the two checkpoints it is made of.
        environment, script, options, data: how it is made: `data` are files, given after the options.
        part: the subfolder of the export that is measured.
        apis: how it can be run: "ort", "genai" or "llama.cpp".
        ours: whether it is this project's and not a peer's.
        path: where it lies, if it is not made here.
    """

    label: str
    model: str
    environment: str = environments.PROJECT
    script: str = ""
    options: tuple[str, ...] = ()
    data: tuple[Path, ...] = ()
    part: str = "."
    apis: tuple[str, ...] = ("ort",)
    ours: bool = False
    path: Path | None = None


FAST = ("accuracy_level=4", "fuse_mlp_gate_up=true", "prune_lm_head=true")
INT8_HEAD = ("algo_config=rtn", "matmul_mixed_precision=last_matmul:int8", "prune_lm_head=true")
BUILDER: dict[str, tuple[str, ...]] = {
    "as it is": (),  # block_size 32, symmetric, accuracy_level 4, embedding and head shared
    "fused, last logits": ("block_size=32", *FAST),
    "fused, last logits, blocks of 128": ("block_size=128", *FAST),
    # k_quant and zero points fail on rows of an odd number of blocks, and the models here have such
    "int8 head, last logits": INT8_HEAD,
}


def peers() -> list[Candidate]:
    """Every peer's file."""
    found = [
        Candidate(f"genai builder int4, {name}", model, "genai", "genai_export.py", options, apis=BOTH)
        for model in (UNIFORM, NONUNIFORM)
        for name, options in BUILDER.items()
    ]
    found.append(Candidate("optimum int8", UNIFORM, "optimum", "optimum_export.py"))
    for part in ("fp32", "int4"):
        label = f"transformers.exporters {part}"
        found.append(Candidate(label, NONUNIFORM, "genai", "exporters_export.py", part=part))
    for model in (UNIFORM, NONUNIFORM):
        found.append(Candidate("llama.cpp Q4_0", model, script="gguf_export.py", apis=("llama.cpp",)))
    return found


def own(precisions: Sequence[str], imatrices: Mapping[str, Path], texts: Path | None) -> list[Candidate]:
    """This project's ONNX in several precisions, calibrated where there is an importance matrix."""
    return [
        Candidate(
            f"ours {name}",
            model,
            script="project_export.py",
            options=(name,),
            data=(imatrices[model], texts) if texts and model in imatrices else (),
            apis=BOTH,
            ours=True,
        )
        for model in (UNIFORM, NONUNIFORM)
        for name in precisions
    ]


def given(text: str) -> Candidate:
    """A candidate of ours from MODEL:LABEL=PATH."""
    model, _, rest = text.partition(":")
    label, _, path = rest.partition("=")
    if model not in (UNIFORM, NONUNIFORM) or not label or not Path(path).exists():
        raise SystemExit(f"error: {text!r} is not {UNIFORM}:LABEL=PATH or {NONUNIFORM}:LABEL=PATH")
    where = Path(path)
    if where.suffix == ".gguf":
        return Candidate(label, model, apis=("llama.cpp",), ours=True, path=where)
    apis = BOTH if (where / "genai_config.json").exists() else ("ort",)
    return Candidate(label, model, apis=apis, ours=True, path=where)


def export(candidate: Candidate, checkpoint: Path | None, work: Path) -> tuple[Path, dict[str, Any]]:
    """The candidate's folder or file, made unless an earlier run made the same, and what making it took."""
    if candidate.path is not None:
        return candidate.path, {}
    assert checkpoint is not None
    key = {
        "checkpoint": [sha256_file(path) for path in sorted(checkpoint.glob("*")) if path.is_file()],
        "code": [sha256_file(path) for path in _code(candidate)],
        "options": candidate.options,
        "data": [sha256_file(path) for path in candidate.data],
        "pins": environments.PINS.get(candidate.environment, ()),
    }
    name = Path(candidate.script).stem.removesuffix("_export")
    folder = work / f"{candidate.model}-{name}-{sha256_json(key)[:12]}"
    record = folder / "export.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        made = _run_measured(candidate, checkpoint, partial)
        write_json(partial / record.name, made)
        partial.rename(folder)
    where = folder / candidate.part
    return next(iter(where.glob("*.gguf")), where), read_json(record)


def model_bytes(path: Path) -> int:
    """Size of what holds graph and weights (a GGUF file holds the tokenizer too)."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("model*.onnx*"))


def _code(candidate: Candidate) -> list[Path]:
    ours = sorted(EXPORTER.glob("*.py")) if candidate.environment == environments.PROJECT else []
    return [HERE / candidate.script, HERE / "torch_checkpoint.py", *ours]


def _run_measured(candidate: Candidate, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Run an export script; its seconds and the peak resident memory (bytes) of its largest process."""
    python = environments.python(candidate.environment)
    print(f"exporting: {candidate.model}, {candidate.label}", file=sys.stderr)
    log = out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), str(HERE / candidate.script), str(checkpoint), str(out), *candidate.options]
    command += map(str, candidate.data)
    began = time.perf_counter()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"error: exporting {candidate.label} failed, see {log}")
    return {"seconds": round(time.perf_counter() - began, 2), "peak_rss": usage.ru_maxrss * 1024}
