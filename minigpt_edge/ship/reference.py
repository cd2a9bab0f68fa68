"""What every exported file is compared with: the checkpoint's own logits, computed in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages.stage import Stage, StageSpec, run_stage
from minigpt_edge_runtime.files import sha256_file
from minigpt_edge_runtime.formats.tokenizer_files import GENERATION_CONFIG, TOKENIZER_FILES

if TYPE_CHECKING:
    from minigpt_edge.stages.console import Log

CODE = (
    *("minigpt_edge.ship", "minigpt_edge.data", "minigpt_edge.models", "minigpt_edge_export"),
    *(f"minigpt_edge_runtime.{name}" for name in ("engines", "formats", "generate", "scoring")),
)
REFERENCE = "reference.safetensors"
WINDOWS, TOKENS = 4, 256  # validation windows, and tokens of each


def reference_stage(work: Path, checkpoint: Path, text: Stage, threads: int, log: Log) -> Stage:
    """reference.safetensors: "tokens" int32 [n, T] and the checkpoint's "logits" float32 [n, T, vocab]."""

    def make(out: Path) -> dict[str, Any]:
        log.step("export: the checkpoint's logits")
        return _write(checkpoint, text.path / "validation.texts.json", out / REFERENCE, threads)

    return run_stage(
        work,
        StageSpec(
            "reference",
            settings={"windows": WINDOWS, "tokens": TOKENS},
            inputs={
                **checkpoint_hashes(checkpoint),
                "validation": text.manifest["outputs"]["validation.texts.json"],
            },
            code=CODE,
        ),
        make,
    )


def checkpoint_hashes(checkpoint: Path) -> dict[str, str]:
    """sha256 of the files of a checkpoint that decide what is exported."""
    names = ("config.json", GENERATION_CONFIG, *TOKENIZER_FILES, "model.safetensors.index.json")
    files = [checkpoint / name for name in names] + sorted(checkpoint.glob("*.safetensors"))
    return {path.name: sha256_file(path) for path in files if path.exists()}


def reference_sample(path: Path) -> dict[str, Any]:
    """What a bundle keeps of a reference.safetensors: its first window, so that a device can compare."""
    from safetensors import safe_open

    from minigpt_edge_runtime.bundle.parity import make_reference

    with safe_open(path, framework="np") as file:
        return make_reference(file.get_tensor("tokens")[0], file.get_slice("logits")[0])


def _rows(ids: Sequence[list[int]]) -> list[list[int]]:
    """WINDOWS rows of TOKENS; where all texts are shorter, of the longest as many as make the most tokens."""
    if rows := [row[:TOKENS] for row in ids if len(row) >= TOKENS][:WINDOWS]:
        return rows
    longest = sorted(ids, key=len, reverse=True)[:WINDOWS]
    count = max(range(1, len(longest) + 1), key=lambda n: n * len(longest[n - 1]))
    return [row[: len(longest[count - 1])] for row in longest[:count]]


def _write(checkpoint: Path, texts: Path, path: Path, threads: int) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    from minigpt_edge.data.windows import read_texts
    from minigpt_edge.models.checkpoint import is_large, load_model
    from minigpt_edge.models.forward import encode, read_tokenizer

    torch.set_num_threads(threads)
    start, windows = read_texts(texts)
    ids = encode(read_tokenizer(checkpoint), start, [window.text for window in windows])
    tokens = torch.tensor(_rows(ids))
    with torch.inference_mode():
        logits = load_model(checkpoint, lazy=is_large(checkpoint))(tokens, use_cache=False).logits
    save_file({"tokens": tokens.int(), "logits": logits.float().contiguous()}, path)
    return {"tokens": tokens.numel()}
