"""Predicted sizes against real files, to the byte; and a family's choice under a limit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from tiny_build import write_corpus, write_model

from minigpt_edge.models.archs import load_arch
from minigpt_edge.models.checkpoint import load_model, save_model, trim_embeddings
from minigpt_edge.prune.sizing import SizeModel
from minigpt_edge.prune.vocabulary.choose import choose_tokens
from minigpt_edge.prune.vocabulary.trim import remap_config, trim_tokenizer
from minigpt_edge.recipe import parse_count
from minigpt_edge.ship.export_stages import f16_stage, gguf_stage
from minigpt_edge.ship.job import Export
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.stage import StageSpec, run_stage
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import quantize
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.targets import UNQUANTIZED, parse_target
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.formats.gguf_header import read_header

METADATA = {"name": "tiny", "base_model": "bigger", "license": "MIT"}
SHAPES = {
    "equal": [(512, 2)] * 4,
    "unequal": [(512, 2), (96, 1), (1024, 2), (64, 1)],
    "fewer": [(256, 1), (736, 2)],
}
ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("sizing") / "corpus", documents=12)


@pytest.fixture(scope="module")
def base(texts: Path) -> Path:
    return write_model(texts.parent / "base", texts)


@pytest.fixture(scope="module")
def untied(base: Path) -> Path:
    """The same with a head of its own and stretched rotary positions, which GGUF stores as a tensor."""
    from safetensors.torch import load_file, save_file

    path = Path(shutil.copytree(base, base.parent / "untied"))
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"tie_word_embeddings": False, "rope_parameters": ROPE}
    (path / "config.json").write_text(json.dumps(config))
    return path


def cut(base: Path, out: Path, blocks: list[tuple[int, int]], tokens: int, *, biases: bool = False) -> Path:
    """A checkpoint with other sizes, as the prune stage writes it."""
    config = json.loads((base / "config.json").read_text())
    data = json.loads((base / "tokenizer.json").read_text())
    kept = choose_tokens(data, [0] * config["vocab_size"], size=tokens)
    old_to_new = trim_tokenizer(base, out, kept)
    model: Any = load_model(base)
    trim_embeddings(model, kept)
    arch = load_arch({"model_type": "llama"})
    if biases:
        arch.give_output_biases(model)
    model.model.layers = model.model.layers[: len(blocks)]
    for block, (width, groups) in zip(arch.blocks(model), blocks, strict=True):
        arch.cut(block, groups=torch.arange(groups), kept_neurons=torch.arange(width))
    shutil.copyfile(base / "config.json", out / "config.json")
    save_model(model, out, out)
    config = json.loads((out / "config.json").read_text()) | {"num_hidden_layers": len(blocks)}
    (out / "config.json").write_text(json.dumps(remap_config(config, {}, old_to_new)[0]))
    return out


def write(checkpoint: Path, kind: str) -> Path:
    path = checkpoint / f"{kind}.gguf"
    plain = kind if kind in UNQUANTIZED else "f16"
    write_gguf(read_checkpoint(checkpoint), checkpoint / "plain.gguf", file_type=plain)
    if kind in UNQUANTIZED:
        return (checkpoint / "plain.gguf").replace(path)
    matrices = [tensor for tensor in read_header(checkpoint / "plain.gguf").tensors if len(tensor.shape) > 1]
    imatrix = {tensor.name: np.ones(tensor.shape[0], np.float32) for tensor in matrices}
    quantize(checkpoint / "plain.gguf", path, kind, imatrix=imatrix, threads=1)
    return path


@pytest.mark.whole
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", ["base", "untied"])
def test_predicted_sizes_are_the_files(
    model: str, shape: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    dense, blocks = request.getfixturevalue(model), SHAPES[shape]
    small = cut(dense, tmp_path / "small", blocks, 500)
    read: dict[Path, dict[str, int]] = {}
    for kind in ("q4_0", "iq4_nl", "q8_0", "q4_k_m", "f16", "bf16"):
        sizes = SizeModel(dense, small, parse_target(f"gguf-{kind}"))
        assert sizes.file_bytes(500, blocks) == write(small, kind).stat().st_size, kind
        for checkpoint in (dense, small):  # what a token needs, by the files themselves
            read.setdefault(checkpoint, {})[kind] = sum(
                tensor.nbytes
                for tensor in read_header(write(checkpoint, kind)).tensors
                if len(tensor.shape) > 1 and (model == "base" or tensor.name != "token_embd.weight")
            )
        assert sizes.decode_bytes(500, blocks) == read[small][kind]
        assert sizes.speedup(500, blocks) == pytest.approx(read[dense][kind] / read[small][kind])


def test_biases_that_pruning_adds_are_counted(base: Path, tmp_path: Path) -> None:
    small = cut(base, tmp_path / "small", SHAPES["unequal"], 500, biases=True)
    config = json.loads((base / "config.json").read_text()) | {"attention_bias": True, "mlp_bias": True}
    sizes = SizeModel(base, small, parse_target("gguf-q4_0"), config)
    assert sizes.file_bytes(500, SHAPES["unequal"]) == write(small, "q4_0").stat().st_size


def test_rows_without_a_token_are_counted(base: Path) -> None:
    sizes = SizeModel(base, base, parse_target("gguf-q8_0"))
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    more = sizes.file_bytes(vocabulary + 64, SHAPES["equal"]) - sizes.file_bytes(vocabulary, SHAPES["equal"])
    assert more == pytest.approx(64 * (34 + 8 + len("[PAD700]") + 4), abs=31)


def test_a_family_is_reckoned_with_its_smallest_type(base: Path) -> None:
    dense = [(1024, 2)] * 4
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    sizes = SizeModel(base, base, parse_target("gguf-q4"))
    single = {
        kind: SizeModel(base, base, parse_target(f"gguf-{kind}")).file_bytes(vocabulary, dense)
        for kind in ("q4_0", "iq4_nl", "q4_1")
    }
    assert sizes.file_bytes(vocabulary, dense) == min(single.values())
    assert sizes.kind in ("q4_0", "iq4_nl")


def test_onnx_sizes_are_refused(base: Path) -> None:
    with pytest.raises(UsageError, match="onnx-int4") as caught:
        SizeModel(base, base, parse_target("onnx-int4"))
    assert caught.value.hint == "--max-size works with GGUF targets"


def test_counts_as_people_write_them() -> None:
    counts = {"60M": 60_000_000, "1.1b": 1_100_000_000, "500k": 500_000, "60000000": 60_000_000}
    assert {text: parse_count(text) for text in counts} == counts
    with pytest.raises(UsageError, match="'60MiB' is not a number of parameters"):
        parse_count("60MiB")


@pytest.fixture(scope="module")
def job(base: Path, texts: Path) -> Export:
    contents = [path.read_text()[:1200] for path in sorted(texts.glob("*.txt"))]

    def make(out: Path) -> dict[str, Any]:
        for split, chosen in (("train", contents[:6]), ("validation", contents[6:9]), ("test", contents[9:])):
            lines = [json.dumps({"text": text}) + "\n" for text in chosen]
            (out / f"{split}.jsonl").write_text("".join(lines))
            windows = [{"text": t, "bytes": len(t.encode()), "base_tokens": len(t) // 3} for t in chosen]
            content = {"document_start": "<|endoftext|>", "split": split, "windows": windows}
            (out / f"{split}.texts.json").write_text(json.dumps(content))
        return {}

    work = base.parent / "work"
    corpus = run_stage(
        work,
        StageSpec(
            "corpus",
            settings={},
            inputs={},
            code=(),
        ),
        make,
    )
    return Export(work, base, None, corpus, METADATA, 1, Log(quiet=True))


def limited(job: Export, limit: int | None) -> Export:
    fields = {name: getattr(job, name) for name in job.__dataclass_fields__}
    return Export(**{**fields, "max_bytes": limit})


@pytest.mark.whole
def test_a_family_tries_a_mix(job: Export) -> None:
    made = gguf_stage(job, parse_target("gguf-q4"), f16_stage(job))
    tried = made.metrics["tried"]
    assert list(tried) == ["q4_0", "iq4_nl", "q4_1", "mixed"]
    best = min(tried, key=lambda name: tried[name]["score"])
    assert (made.path / "model.gguf").stat().st_size == tried[best]["bytes"]
    assert bool(made.metrics["mix"]) == (best == "mixed")
    assert made.metrics["type"] in ("q4_0", "iq4_nl", "q4_1")
    assert sorted(path.name for path in made.path.iterdir()) == ["manifest.json", "model.gguf", "parity.json"]


@pytest.mark.whole
def test_a_limit_is_filled_and_never_exceeded(job: Export) -> None:
    family, f16 = parse_target("gguf-q4"), f16_stage(job)
    with pytest.raises(EdgeError, match="the smallest gguf-q4 file of this model has") as caught:
        gguf_stage(limited(job, 100_000), family, f16)
    found = re.search(r"has ([\d,]+) bytes, 100,000 are allowed", caught.value.message)
    assert found
    smallest = int(found[1].replace(",", ""))
    with pytest.raises(EdgeError, match="the smallest"):
        gguf_stage(limited(job, smallest - 1), family, f16)
    for limit in (smallest, int(1.1 * smallest), int(1.3 * smallest)):
        made = gguf_stage(limited(job, limit), family, f16)
        size = (made.path / "model.gguf").stat().st_size
        assert size <= limit
        assert made.metrics["tried"]["mixed"]["bytes"] <= limit
        assert made.metrics["tried"]["mixed"]["bytes"] >= 0.98 * limit
        fits = {name: t for name, t in made.metrics["tried"].items() if t["bytes"] <= limit}
        assert size == min(fits.values(), key=lambda trial: trial["bits_per_byte"])["bytes"]
        for pattern, kind in made.metrics["mix"].items():
            tensors = [t for t in read_header(made.path / "model.gguf").tensors if re.search(pattern, t.name)]
            assert {tensor.type for tensor in tensors} == {kind.upper()}


@pytest.mark.whole
def test_an_exact_target_over_the_limit_is_refused(job: Export) -> None:
    f16, target = f16_stage(job), parse_target("gguf-q8_0")
    size = (gguf_stage(job, target, f16).path / "model.gguf").stat().st_size
    with pytest.raises(EdgeError, match=f"{size:,} bytes"):
        gguf_stage(limited(job, size - 1), target, f16)
    made = gguf_stage(limited(job, size), target, f16)
    assert (made.path / "model.gguf").stat().st_size == size
    assert made.metrics["mix"] == made.metrics["tried"] == {}
