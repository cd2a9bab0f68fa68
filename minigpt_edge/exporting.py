"""From a checkpoint to measured files: F16 GGUF, parity gate, quantization, measurements."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stage import Stage, run_stage
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.files import read_json, sha256_file, write_json

if TYPE_CHECKING:
    from minigpt_edge.console import Talk
    from minigpt_edge.models import BaseModel

F16 = "model-f16.gguf"
MODEL = "model.gguf"
REFERENCE_TOKENS = (4, 256)  # windows and tokens of each whose logits the file must reproduce
CHOICE_WINDOWS = 12  # validation windows on which the types of a family are compared
# Loss falls with parameters to the power -0.076 (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1):
# what a byte is worth when two types differ in size and quality.
SCALING_EXPONENT = 0.076
_EXPORT_CODE = tuple(
    f"minigpt_edge_export.{name}"
    for name in ("gguf", "pretokenizers", "spec", "tokenizer", "verify", "scripts")
)
_QUANTIZE_CODE = (
    "minigpt_edge_export.quantize",
    "minigpt_edge_export.targets",
    "minigpt_edge_runtime.scoring",
)
_MEASURE_CODE = tuple(f"minigpt_edge_runtime.{name}" for name in ("measure", "scoring", "gguf", "engine"))


def export_stage(
    work: Path, checkpoint: Path, text: Stage, metadata: dict[str, str], threads: int, talk: Talk
) -> Stage:
    """The F16 file, proven against the checkpoint: logits, token ids, round trip."""
    from minigpt_edge_export.gguf import write_gguf
    from minigpt_edge_export.spec import read_checkpoint
    from minigpt_edge_export.verify import check

    def make(out: Path) -> dict[str, Any]:
        from minigpt_edge.corpus import read_split

        talk.step("export: GGUF F16")
        decoder = read_checkpoint(checkpoint)
        write_gguf(decoder, out / F16, metadata=metadata)
        reference = out / "reference.safetensors"
        _write_reference(checkpoint, text.path / "validation.texts.json", reference, threads)
        talk.step("export: parity")
        texts = read_split(text.path, "validation") + read_split(text.path, "test")
        evidence = work / "parity-failure.json"
        logits, tokens = check(
            out / F16,
            reference=reference,
            tokenizer_json=checkpoint / "tokenizer.json",
            texts=texts,
            evidence=evidence,
            threads=threads,
        )
        reference.unlink()
        evidence.replace(out / "parity.json")
        return {
            "architecture": "llama" if decoder.uniform else "deci",
            "parameters": decoder.parameters,
            "kl_mean": logits.kl_mean,
            "argmax_agreement": logits.argmax_agreement,
            "texts": tokens.texts,
            "tokens": tokens.tokens,
        }

    stage = run_stage(
        work,
        "export",
        settings={"metadata": metadata, "reference": REFERENCE_TOKENS},
        inputs={**checkpoint_hashes(checkpoint), "corpus": text.digest},
        code=_EXPORT_CODE,
        make=make,
    )
    metrics = stage.metrics
    talk.line(
        "export",
        f"GGUF F16 ({metrics['architecture']}), KL to the checkpoint {metrics['kl_mean']:.1e}, "
        f"{metrics['argmax_agreement']:.1%} of arg-max and all token ids of {metrics['texts']:,} texts agree",
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    return stage


def checkpoint_hashes(checkpoint: Path) -> dict[str, str]:
    """sha256 of the files of a checkpoint that decide what is exported."""
    names = (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    )
    files = [checkpoint / name for name in names] + sorted(checkpoint.glob("*.safetensors"))
    return {path.name: sha256_file(path) for path in files if path.exists()}


def _write_reference(checkpoint: Path, texts: Path, path: Path, threads: int) -> None:
    """Float32 logits of the checkpoint on the first tokens of a few windows, for the parity gate."""
    import torch
    from safetensors.torch import save_file

    from minigpt_edge.checkpoint import load_model
    from minigpt_edge.evaluate.perplexity import encode, read_texts, read_tokenizer

    torch.set_num_threads(threads)
    windows, length = REFERENCE_TOKENS
    start, records = read_texts(texts)
    ids = encode(read_tokenizer(checkpoint), start, [record["text"] for record in records])
    rows = [row for row in ids if len(row) >= length][:windows] or [min(ids, key=len)]
    tokens = torch.tensor([row[:length] for row in rows])
    with torch.inference_mode():
        logits = load_model(checkpoint)(tokens, use_cache=False).logits
    save_file({"tokens": tokens.int(), "logits": logits.float().contiguous()}, path)


def quantize_stage(
    work: Path,
    target: Target,
    exported: Stage,
    checkpoint: Path,
    importance: Path | None,
    text: Stage,
    threads: int,
    talk: Talk,
) -> Stage:
    """The file of a target; among a family's types the one of best validation quality per byte."""
    from minigpt_edge_export.quantize import imatrix_from_file, quantize, tensor_types
    from minigpt_edge_export.spec import read_checkpoint
    from minigpt_edge_export.targets import candidates

    source = exported.path / F16

    def make(out: Path) -> dict[str, Any]:
        if not target.quantized:
            return _unquantized(target.types[0], source, checkpoint, out)
        imatrix = imatrix_from_file(importance) if importance else None
        names = candidates(target, read_checkpoint(checkpoint), imatrix=imatrix is not None)
        texts = _some_windows(text.path / "validation.texts.json", out / "texts.json")
        tried: dict[str, dict[str, float]] = {}
        for index, name in enumerate(names):
            talk.step(f"{target.name}: {name}", index, len(names))
            quantize(source, out / f"{name}.gguf", name, imatrix=imatrix, threads=threads)
            if len(names) > 1:
                tried[name] = _trial(out / f"{name}.gguf", texts, threads)
        best = min(tried, key=lambda name: tried[name]["score"]) if tried else names[0]
        (out / f"{best}.gguf").rename(out / MODEL)
        for name in names:
            (out / f"{name}.gguf").unlink(missing_ok=True)
        texts.unlink()
        return {"type": best, "tried": tried, "tensor_types": tensor_types(out / MODEL)}

    stage = run_stage(
        work,
        f"quantize-{target.name}",
        settings={
            "target": target.name,
            "types": target.types,
            "choice_windows": CHOICE_WINDOWS,
            "threads": threads,
        },
        inputs={
            "f16": exported.manifest["outputs"][F16],
            "imatrix": sha256_file(importance) if importance else "",
            "validation": text.manifest["outputs"]["validation.texts.json"],
        },
        code=_QUANTIZE_CODE,
        make=make,
    )
    tried = "; ".join(
        f"{name} {trial['bytes'] / 1e6:.1f} MB {trial['bits_per_byte']:.4f}"
        for name, trial in stage.metrics["tried"].items()
    )
    size = (stage.path / MODEL).stat().st_size
    text_line = f"{target.name} is {stage.metrics['type'].upper()}, {size / 1e6:.1f} MB"
    talk.line(
        "quantize",
        text_line + (f" (bits per byte on validation: {tried})" if tried else ""),
        stage.manifest["seconds"],
        reused=stage.reused,
    )
    return stage


def _unquantized(kind: str, f16: Path, checkpoint: Path, out: Path) -> dict[str, Any]:
    from minigpt_edge_export.gguf import write_gguf
    from minigpt_edge_export.quantize import tensor_types
    from minigpt_edge_export.spec import read_checkpoint

    if kind == "f16":
        shutil.copyfile(f16, out / MODEL)
    else:
        write_gguf(read_checkpoint(checkpoint), out / MODEL, file_type=kind)
    return {"type": kind, "tried": {}, "tensor_types": tensor_types(out / MODEL)}


def _some_windows(source: Path, path: Path) -> Path:
    content = read_json(source)
    write_json(path, {**content, "windows": content["windows"][:CHOICE_WINDOWS]})
    return path


def _trial(model: Path, texts: Path, threads: int) -> dict[str, float]:
    """Size, quality and their balance: log bits per byte + SCALING_EXPONENT x log bytes, lower is better."""
    from minigpt_edge_runtime.measure import run_fresh

    bits = run_fresh("quality", model, texts=str(texts), threads=threads)["bits_per_byte"]
    size = model.stat().st_size
    return {"bytes": size, "bits_per_byte": bits, "score": math.log(bits) + SCALING_EXPONENT * math.log(size)}


def measure(model: Path, texts: Path, threads: int, talk: Talk, what: str) -> dict[str, Any]:
    """Speed, memory and quality of a model file, each in a process of its own that has no torch."""
    from minigpt_edge_runtime.measure import run_fresh

    talk.step(f"measure: {what}, speed")
    speed = run_fresh("speed", model, threads=threads)
    talk.step(f"measure: {what}, quality")
    quality = run_fresh("quality", model, texts=str(texts), threads=threads)
    return {"speed": speed, "quality": quality}


def measure_stage(
    work: Path, name: str, model: Path, text: Stage, threads: int, talk: Talk, what: str
) -> Stage:
    """`measure` of one file on the test windows."""
    stage = run_stage(
        work,
        name,
        settings={"threads": threads},
        inputs={"model": sha256_file(model), "test": text.manifest["outputs"]["test.texts.json"]},
        code=_MEASURE_CODE,
        make=lambda out: measure(model, text.path / "test.texts.json", threads, talk, what),
    )
    _say_measured(stage, what, talk)
    return stage


def _say_measured(stage: Stage, what: str, talk: Talk) -> None:
    speed, quality = stage.metrics["speed"], stage.metrics["quality"]
    talk.line(
        "measure",
        f"{what}: {quality['bits_per_byte']:.4f} bits per byte on test, "
        f"{speed['decode_tokens_per_second']:.0f} tokens/s, {speed['peak_rss_mb']:.0f} MB",
        stage.manifest["seconds"],
        reused=stage.reused,
    )


def baseline_stage(work: Path, base: BaseModel, kind: str, text: Stage, threads: int, talk: Talk) -> Stage:
    """The dense model at F16, or quantized the usual way (without importance matrix), measured once."""
    from minigpt_edge_export.gguf import write_gguf
    from minigpt_edge_export.quantize import quantize
    from minigpt_edge_export.spec import read_checkpoint
    from minigpt_edge_export.targets import UNQUANTIZED

    what = f"dense {kind.upper()}"

    def make(out: Path) -> dict[str, Any]:
        talk.step(f"measure: {what}, export")
        plain = out / "plain.gguf"
        write_gguf(read_checkpoint(base.path), plain, file_type=kind if kind in UNQUANTIZED else "f16")
        model = plain
        if kind not in UNQUANTIZED:
            model = out / "quantized.gguf"
            quantize(plain, model, kind, threads=threads)
        result = measure(model, text.path / "test.texts.json", threads, talk, what)
        plain.unlink(missing_ok=True)
        model.unlink(missing_ok=True)
        return result

    stage = run_stage(
        work,
        f"baseline-{kind}",
        settings={"type": kind, "threads": threads},
        inputs={"model": base.fingerprint, "test": text.manifest["outputs"]["test.texts.json"]},
        code=(*_MEASURE_CODE, *_EXPORT_CODE, "minigpt_edge_export.quantize"),
        make=make,
    )
    _say_measured(stage, what, talk)
    return stage
