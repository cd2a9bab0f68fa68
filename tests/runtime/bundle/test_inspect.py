from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from tiny_gguf import BLOCKS, FFN, HEADS, KV_HEADS
from tokenizers import Tokenizer

from minigpt_edge.prune.plan import BlockPlan, Plan, write_plan
from minigpt_edge_runtime.bundle.inspect import describe
from minigpt_edge_runtime.bundle.inspect_table import render
from minigpt_edge_runtime.errors import EdgeError


def shown(description: dict[str, Any]) -> str:
    console = Console(width=140, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    render(description, console)
    json.dumps(description)
    return console.export_text()


def test_gguf(model: Path, tokenizer: Tokenizer) -> None:
    found = describe(model)
    facts = found["facts"]
    assert found["kind"] == "gguf" and facts["vocabulary"] == tokenizer.get_vocab_size()
    assert facts["chat_template"] is True and facts["tied_embeddings"] is False
    assert facts["tokenizer"] == "gpt2 / smollm" and facts["bytes"] == model.stat().st_size
    assert len(found["blocks"]) == BLOCKS
    block = found["blocks"][0]
    assert (block["ffn_width"], block["heads"], block["kv_heads"]) == (FFN, HEADS, KV_HEADS)
    assert sum(record["parameters"] for record in found["tensor_types"].values()) == facts["parameters"]
    text = shown(found)
    assert "F16" in text and "0–1" in text and "yes" in text


def test_bundle(bundle: Path) -> None:
    found = describe(bundle)
    assert found["kind"] == "bundle" and found["facts"]["domain"] == "law"
    assert found["facts"]["shipped F16"] == "2.0 MB, 1.5000 bits/byte"
    assert found["models"][0]["kind"] == "gguf"
    assert "Apache-2.0" in shown(found)


def checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    base = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 8,
        "intermediate_size": 96,
        "head_dim": 4,
    }
    base |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps({**base, **config}))
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float32)}, folder / "model.safetensors")
    return folder


def test_checkpoint_with_unequal_blocks(tmp_path: Path) -> None:
    per_layer = {"1": {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}}
    settings = {"document_start": "<|endoftext|>"}
    found = describe(checkpoint(tmp_path / "c", per_layer_config=per_layer, minigpt_edge=settings))
    assert (
        found["kind"] == "checkpoint" and found["facts"]["parameters"] == 22 and found["facts"]["bytes"] == 88
    )
    assert [block["ffn_width"] for block in found["blocks"]] == [96, 64, 96]
    assert [block["kv_heads"] for block in found["blocks"]] == [2, 1, 2]
    assert found["facts"]["unequal_blocks"] is True and found["facts"]["document_start"] == "<|endoftext|>"
    assert "64" in shown(found)


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(EdgeError, match="truncated"):
        describe(folder)
    weights.write_bytes(b"not weights")
    with pytest.raises(EdgeError, match="not a safetensors file"):
        describe(weights)


def test_plan(tmp_path: Path) -> None:
    blocks = (BlockPlan((0, 2), tuple(range(64))), BlockPlan((1,), (0, 1, 2, 7, 9, 10)))
    plan = Plan("ab" * 32, "wanda", tuple(range(0, 600, 2)), blocks, (1000, 580))
    write_plan(plan, tmp_path / "plan.json")
    found = describe(tmp_path / "plan.json")
    assert (
        found["kind"] == "plan" and found["facts"]["sparsity"] == 0.42 and found["facts"]["vocabulary"] == 300
    )
    assert [(block["ffn_width"], block["kv_groups"]) for block in found["blocks"]] == [(64, 2), (6, 1)]
    assert "wanda" in shown(found)


def test_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    speed = {"decode_tokens_per_second": 210.25, "peak_rss_mb": 151.6}
    models = [
        {"label": "shipped Q4_0", "bytes": 50_400_000, "quality": {"bits_per_byte": 0.71234}, "speed": speed}
    ]
    report.write_text(json.dumps({"name": "law", "models": models, "sparsity": {"achieved": 0.42}}))
    found = describe(report)
    assert found["kind"] == "report" and found["facts"]["sparsity.achieved"] == 0.42
    assert found["facts"]["shipped Q4_0"] == "50.4 MB, 0.7123 bits/byte, 210.2 tokens/s, 152 MB peak memory"


@pytest.mark.parametrize("content", ["[1, 2]", '{"a": 1}', '{"blocks": [3]}', "{"])
def test_other_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(EdgeError):
        describe(tmp_path / "x.json")


def test_unknown_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"123")
    for path, message in (
        (tmp_path / "none", "does not exist"),
        (tmp_path / "x.bin", "nothing that can be inspected"),
    ):
        with pytest.raises(EdgeError, match=message):
            describe(path)
    with pytest.raises(EdgeError, match="holds nothing"):
        describe(tmp_path)
