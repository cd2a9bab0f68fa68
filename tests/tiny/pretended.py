"""Stages computed on the CPU and again on the pretended device, in a process of its own.

    python tests/tiny/pretended.py PLACE [CASE ...]

Prints a line of JSON for each case: which files of pruning differ ("pruned"), by how much the recovered
weights do ("recovered"), by how much those of a recovery that was interrupted ("resumed"), by how much
what GPTQ rounds by does ("grams"), and whether `evaluate` computes the same of them ("scored").
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tiny_build import write_corpus, write_model

from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.evaluation.subject import Subject
from minigpt_edge.models import base_model
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import Recipe
from minigpt_edge.recover.stage import RecoveryJob, recover_stage
from minigpt_edge.ship.grams import weighted_grams
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.device import computing_on
from minigpt_edge.stages.stage import Stage
from minigpt_edge_runtime.files import sha256_file

DEVICE = "pretend:0"
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 2048, "n_inner": 1024}),
    "phi": ("Phi", {**_SIZES, "intermediate_size": 1024, "rope_parameters": _ROPE}),
    "gpt_neox": ("GPTNeoX", {**_SIZES, "intermediate_size": 1024, "rope_parameters": _ROPE}),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 1024, "word_embed_proj_dim": 32}),
    "qwen3": ("Qwen3", {**_SIZES, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 1024}),
}
MASK = {"pattern": "unstructured", "sparsity": 0.5}
RECOVERED = {"recover": "tokens", "recover_tokens": 2048}
CASES: dict[str, dict[str, Any]] = {
    "least_squares": RECOVERED,
    "on disk": RECOVERED,
    "wanda": {"method": "wanda", **MASK, **RECOVERED},
    "sparsegpt": {"method": "sparsegpt", "pattern": "2:4", "sparsity": 0.5},
    "magnitude": {"method": "magnitude", **MASK},
    "one cut": {"method": "wanda", "widths": "global"},
    "contextual": {"method": "contextual"},
    "taylor": {"method": "taylor"},
    "flap": {"method": "flap"},
    "blocks": {"method": "blocks"},
    "laser": {"method": "laser", "sparsity": None},
    "lora": {"recover": "tokens", "recover_tokens": 8192, "lora_rank": 4},
    "grid": {**RECOVERED, "qat": True},
    **dict.fromkeys(FAMILIES, RECOVERED),
}


class Interrupted(Exception):
    """A recovery was stopped on purpose."""


def written(place: Path, case: str) -> Path:
    """The model of a case; the corpus is written too."""
    model = place / (case if case in FAMILIES else "model")
    if not (place / "corpus").exists():
        write_corpus(place / "corpus")
    if not model.exists():
        kind, settings = FAMILIES.get(case, ("", {}))
        config = _config(kind, settings) if kind else None
        write_model(model, place / "corpus", blocks=2, config=config)
    return model


def _config(kind: str, settings: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(**settings)


def compare(place: Path, case: str) -> dict[str, Any]:
    """A case on both devices."""
    options = {"calibration_tokens": 4096, "min_count": 1, "sparsity": 0.3, "recover": "no", **CASES[case]}
    model = written(place, case)
    recipe = Recipe(corpus=(str(place / "corpus"),), model=str(model), baseline=False, **options)
    with Log(quiet=True) as log:
        base = base_model.resolve_model(recipe.model)
        made = []
        for device in ("cpu", DEVICE):
            asked = dataclasses.replace(recipe, device=device)
            context = BuildContext(place / f"work-{device[:3]}-{case}", asked, base, log)
            text = corpus_stage(context)
            pruned = prune_stage(context, text)
            stages = context, text, dense_stage(context, text), pruned
            made.append((pruned, _recovered(stages, case) if asked.recover == "tokens" else None))
        found: dict[str, Any] = {"case": case, "pruned": _unlike(*(pruned for pruned, _ in made))}
        one, other = (recovered for _, recovered in made)
        if one and other:
            found |= {"recovered": _distance(one, other), "resumed": _resumed(stages, case, other)}
            found["grams"] = _grams_apart(other.path, text.path)
            found["scored"] = bool((_logits(other.path, "cpu") == _logits(other.path, DEVICE)).all())
    return found


def _recovered(stages: Any, case: str) -> Stage:
    return recover_stage(*stages, kind="Q4_0" if case == "grid" else None)


def _resumed(stages: Any, case: str, whole: Stage) -> float:
    """How far a recovery on the device that was interrupted ends from one that was not."""
    job = RecoveryJob.of(*stages, "Q4_0" if case == "grid" else None)
    config = dataclasses.replace(job.config(), checkpoint_seconds=0.0)
    out = stages[0].work / "interrupted"

    def stop(entry: dict[str, Any]) -> None:
        if entry.get("step") == 2 and "loss" in entry:
            raise Interrupted

    try:
        job.run(out, config, stop)
    except Interrupted:
        job.run(out, config, lambda entry: None)
        return _distance(whole, out)
    raise ValueError("the recovery was not interrupted")


def _grams_apart(folder: Path, corpus: Path) -> float:
    """The largest difference of the Gram matrices by which GPTQ rounds, in parts of the matrix's largest."""
    import numpy as np

    made = []
    for device in ("cpu", DEVICE):
        with computing_on(device):
            made.append({n: g for grams in weighted_grams(folder, corpus, 1) for n, g in grams.items()})
    return max(float(np.abs(gram - made[1][name]).max() / gram.max()) for name, gram in made[0].items())


def _logits(folder: Path, device: str) -> Any:
    """What `evaluate` computes of a checkpoint."""
    with Subject(folder, None, None, None).open(1, device) as engine:
        return next(iter(engine.score(list(range(100)))))


def _files(stage: Stage) -> Iterator[Path]:
    return (path.relative_to(stage.path) for path in stage.path.rglob("*.safetensors"))


def _unlike(one: Stage, other: Stage) -> list[str]:
    names = sorted({*_files(one), *_files(other)})
    return [str(name) for name in names if sha256_file(one.path / name) != sha256_file(other.path / name)]


def _distance(one: Stage, other: Stage | Path) -> float:
    """The largest difference of two models' weights, in parts of the tensor's largest."""
    from safetensors.torch import load_file

    folders = one.path, other if isinstance(other, Path) else other.path
    a, b = (load_file(folder / "model.safetensors", device="cpu") for folder in folders)
    return max(float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a)


def main(place: Path, wanted: list[str]) -> None:
    """Run cases, all by default."""
    import pretend_device
    import torch

    from minigpt_edge.models import checkpoint, precision

    def float32_of(device: Any) -> Any:
        """Whatever this CPU does. In the threads that torch starts for a device's backward passes the default
        device is the CPU's, so that code there must not ask."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the dtype is asked for where the device is not known")
        return torch.float32

    pretend_device.register()
    float32 = patch.object(precision, "_dtype_of", float32_of)
    with pretend_device.Made(), float32:
        for case in wanted or CASES:
            large = case == "on disk"
            with patch.object(checkpoint, "is_large", lambda directory, large=large: large):
                print(json.dumps(compare(place, case)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
