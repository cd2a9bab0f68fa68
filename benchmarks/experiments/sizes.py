"""Time and memory of building models of 0.1 to 7 billion parameters: random weights cost what real ones do.

    python benchmarks/experiments/sizes.py [--only NAME ...] [--blocks N] [--calibration-tokens N]

Each shape gets bfloat16 weights and the default model's tokenizer, and goes through `minigpt-edge build
--no-recover --no-baseline` in a process of its own. The text is a few documents of the law domain, so that
scoring, which is not what is asked here, takes little. The target is F16: random weights leave the likeliest
token to chance, so that at 7 B a Q8_0 file is refused. With --blocks, models of so many blocks show what one
block takes. What was finished when a run is stopped is kept in the cache, and removed with the row. Writes
benchmarks/results/sizes.json, one row per shape and number of tokens, keeping the other rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.lib.bench import corpus_stage
from benchmarks.lib.results import RESULTS, provenance
from minigpt_edge.stages.context import BuildContext

DOCUMENTS = {"train": 60, "validation": 5, "test": 5}  # they come to the same splits again
RESULT = RESULTS / "sizes.json"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_parameters": ROPE}
# name -> settings of config.json, bound of memory in GiB
SHAPES: dict[str, tuple[dict[str, Any], float | None]] = {
    "SmolLM2-135M": (
        {
            **LLAMA,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "SmolLM2-360M": (
        {
            **LLAMA,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "tie_word_embeddings": True,
        },
        None,
    ),
    "Phi-1.5": (
        {
            "model_type": "phi",
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "rope_parameters": {**ROPE, "partial_rotary_factor": 0.5},
        },
        8,
    ),
    "OPT-1.3B": (
        {
            "model_type": "opt",
            "hidden_size": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "word_embed_proj_dim": 2048,
        },
        8,
    ),
    "LLaMA-2-7B": (
        {
            **LLAMA,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "tie_word_embeddings": False,
        },
        12,
    ),
}


def write_texts(path: Path) -> None:
    """The first documents of the law domain's splits."""
    from minigpt_edge.data import corpus
    from minigpt_edge.models import base_model
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.packages import cache_dir

    recipe, work = Recipe(domain="law"), cache_dir() / "work"
    text = corpus_stage(BuildContext(work, recipe, base_model.resolve_model(), Log(quiet=True)))
    documents = [
        document
        for split, count in DOCUMENTS.items()
        for document in corpus.read_split(text.path, split)[:count]
    ]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def write_model(folder: Path, settings: dict[str, Any]) -> int:
    """A checkpoint of random weights with the default model's tokenizer; its number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from minigpt_edge.models.base_model import resolve_model
    from minigpt_edge.models.checkpoint import standard_names
    from minigpt_edge.models.safetensors_stream import Tensor, write_tensors
    from minigpt_edge_runtime.files import read_json, write_json

    base = resolve_model().path
    own = read_json(base / "config.json")
    ids = {key: own[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "vocab_size")}
    config = AutoConfig.for_model(**settings, **ids, max_position_embeddings=2048)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tensors = [
        Tensor(n, shape, partial(_values, index, n, shape), "BF16")
        for index, (n, shape) in enumerate(shapes.items())
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "model.safetensors", tensors)
    written = {**config.to_dict(), "dtype": "bfloat16", "minigpt_edge": own["minigpt_edge"]}
    write_json(folder / "config.json", standard_names(written))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(base / name, folder / name)
    return sum(tensor.parameters for tensor in tensors)


def _values(seed: int, name: str, shape: tuple[int, ...]) -> Any:
    """bfloat16 as models begin: small normal numbers, ones for a norm, zeros for a bias."""
    import numpy as np
    from ml_dtypes import bfloat16

    values = np.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
    if len(shape) > 1:
        rows = np.random.default_rng(seed).standard_normal((64, shape[1]), dtype=np.float32) * 0.02
        values = np.concatenate([np.roll(rows, turn, 1) for turn in range(-(-shape[0] // 64))])[: shape[0]]
    return np.ascontiguousarray(values).view(bfloat16)[..., 1::2]  # the upper halves of little-endian floats


def build(name: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One shape through the stages; a row of the result."""
    from minigpt_edge.models import checkpoint
    from minigpt_edge.prune import memory

    settings, bound = SHAPES[name]
    if given.blocks:
        settings = {**settings, "num_hidden_layers": given.blocks}
    parameters = write_model(folder / "model", settings)
    texts = folder / "texts.jsonl"
    write_texts(texts)
    command = [sys.executable, "-m", "minigpt_edge", "build", "--model", str(folder / "model")]
    command += ["--corpus", str(texts), "--no-recover", "--no-baseline"]
    command += ["--work", str(folder / "work"), "--out", str(folder / "out"), "--force"]
    command += ["--calibration-tokens", str(given.calibration_tokens), "--threads", str(given.threads)]
    command += [part for target in given.target for part in ("--target", target)]
    if subprocess.run(command).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    stages = {}
    for manifest in sorted(folder.glob("work/*/manifest.json")):
        record = json.loads(manifest.read_text())
        stages[record["stage"]] = {"seconds": record["seconds"], "peak_rss_mb": record["peak_rss_mb"]}
    prune = stages["prune"]["seconds"]
    model = folder / "model"
    estimate = partial(memory.of_pruning, checkpoint.read_config(model), parameters, given.calibration_tokens)
    return {
        "shape": name,
        "blocks": settings["num_hidden_layers"],
        "parameters": parameters,
        "calibration_tokens": given.calibration_tokens,
        "targets": given.target,
        "threads": given.threads,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "peak_gib": max(stage["peak_rss_mb"] for stage in stages.values()) * 1e6 / 2**30,
        "pruning_estimated_gib": estimate(lazy=checkpoint.is_large(model)) / 2**30,
        "bound_gib": bound,
        "stages": stages,
        "prune_seconds_per_1e12": prune / (parameters * given.calibration_tokens / 1e12),
    }


def _kind(row: dict[str, Any]) -> tuple[str, int]:
    return row["shape"], row["calibration_tokens"]


def main() -> None:
    """Run the shapes that are asked for, smallest first."""
    from minigpt_edge.stages.packages import cache_dir
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--blocks", type=int, help="this many blocks, written to no result")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=all_cores())
    parser.add_argument("--target", nargs="+", default=["gguf-f16"])
    given = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for name in given.only:
        folder = cache_dir() / "sizes" / f"{name}-{given.blocks or 'all'}"
        row = build(name, given, folder)
        shutil.rmtree(folder)
        print(json.dumps(row, indent=2))
        if given.blocks:
            continue
        rows = [other for other in rows if _kind(other) != _kind(row)] + [row]
        rows.sort(key=lambda one: (one["parameters"], one["calibration_tokens"]))
        row.update(provenance())
        RESULT.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
