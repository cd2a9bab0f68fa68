"""What is in a GGUF or ONNX file, a bundle, a checkpoint directory, a plan or a report."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.engines.open import is_gguf
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json, understanding
from minigpt_edge_runtime.formats.gguf_names import BLOCK, HEAD
from minigpt_edge_runtime.formats.latency_report import SCHEMA, read_report
from minigpt_edge_runtime.formats.tokenizer_files import (
    TOKENIZER,
    chat_templates,
    gguf_chat_templates,
    read_tokenizer_config,
)
from minigpt_edge_runtime.formats.types import by_type

KNOWN = (
    "a .gguf or .onnx file, a bundle, a checkpoint directory, a plan.json, a report.json or a report of bench"
)
Description = dict[str, Any]


def describe(path: Path | str) -> Description:
    """Describe a file or directory.

    Returns:
        JSON-able: "kind" (gguf, onnx, bundle, checkpoint, plan, report or latency report), "path", "facts"
        (name -> value), and where it has them "blocks" (a record per block), "tensor_types" (tensors,
        parameters, bytes), "operators" (of an ONNX graph: name -> nodes).

    Raises:
        EdgeError: the path is missing, damaged, or nothing we know.
    """
    with understanding(path):
        return _describe(Path(path))


def _describe(path: Path) -> Description:
    if path.is_dir():
        return _directory(path)
    if not path.exists():
        raise EdgeError(f"{path} does not exist", "check the path")
    if path.suffix.lower() == ".json":
        return _json_file(path)
    if path.suffix.lower() == ".onnx":
        return _onnx(path)
    if path.suffix.lower() == ".zip":
        from minigpt_edge_runtime.bundle.unpack import unpack

        return _directory(unpack(path))
    if path.suffix.lower() == ".safetensors":
        return {"kind": "safetensors", "path": str(path), **_safetensors([path])}
    if path.suffix.lower() == ".gguf" or is_gguf(path):
        return _gguf(path)
    raise EdgeError(f"{path} is nothing that can be inspected", f"give {KNOWN}")


def _gguf(path: Path) -> Description:
    from minigpt_edge_runtime.formats.gguf_header import read_header

    header = read_header(path)
    metadata, get = header.metadata, header.of_architecture
    by_block: dict[int, dict[str, int]] = {}
    for tensor in header.tensors:
        if found := re.match(rf"{BLOCK}\.(\d+)\.", tensor.name):
            record = by_block.setdefault(int(found[1]), {"parameters": 0, "bytes": 0})
            record["parameters"] += tensor.elements
            record["bytes"] += tensor.nbytes
    arrays = {
        "ffn_width": "feed_forward_length",
        "heads": "attention.head_count",
        "kv_heads": "attention.head_count_kv",
    }
    blocks = [
        {"block": i, **{name: _at(get(key), i) for name, key in arrays.items()}, **record}
        for i, record in sorted(by_block.items())
    ]
    facts = {
        "name": metadata.get("general.name"),
        "architecture": header.architecture,
        "quantization": header.quantization,
        "parameters": header.parameters,
        "bytes": header.file_bytes,
        "blocks": get("block_count"),
        "embedding": get("embedding_length"),
        "context": get("context_length"),
        "vocabulary": header.vocabulary(),
        "tokenizer": _join(metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")),
        "chat_template": bool(gguf_chat_templates(metadata)),
        "tied_embeddings": not any(tensor.name == HEAD for tensor in header.tensors),
        "licence": metadata.get("general.license"),
        "gguf_version": header.version,
    }
    return {
        "kind": "gguf",
        "path": str(path),
        "facts": facts,
        "blocks": blocks,
        "tensor_types": header.types(),
    }


def _onnx(path: Path) -> Description:
    from minigpt_edge_runtime.formats.artefact import describe_model
    from minigpt_edge_runtime.formats.onnx_header import read_onnx

    header, model = read_onnx(path), describe_model(path)
    columns = {name: header.fact(name) or [] for name in ("ffn_width", "heads", "kv_heads")}
    blocks = [
        {"block": at, **{name: values[at] for name, values in columns.items()}}
        for at in range(min(map(len, columns.values())))
    ]
    wanted = ("name", "architecture", "quantization", "parameters", "bytes", "vocabulary", "context_length")
    facts = {
        **{name: model[name] for name in wanted},
        "blocks": len([name for name in header.inputs if name.endswith(".key")]),
        "base_model": header.fact("base_model"),
        "licence": header.fact("license"),
        "block_size": header.fact("block_size"),
        "symmetric": header.fact("symmetric"),
        "head": header.fact("head"),
        "accuracy_level": header.fact("accuracy_level"),
        "tied_embeddings": header.fact("tied_embeddings"),
        "opsets": ", ".join(f"{name or 'ai.onnx'} {number}" for name, number in header.opsets.items()),
        "files": len(header.files),
        "weight_bytes_per_token": model["weight_bytes_per_token"],
    }
    return {
        "kind": "onnx",
        "path": str(path),
        "facts": facts,
        "blocks": blocks,
        "tensor_types": header.types(),
        "operators": dict(header.operators.most_common()),
    }


def _directory(path: Path) -> Description:
    from minigpt_edge_runtime.bundle.manifest import KIND, MANIFEST, ONNX_MODEL

    manifest = path / MANIFEST
    if manifest.is_file():
        content = read_json(manifest)
        if isinstance(content, dict) and content.get("kind") == KIND:
            return _bundle(path)
    if (path / ONNX_MODEL).is_file():
        return _onnx(path / ONNX_MODEL)
    if (path / "config.json").is_file():
        return _checkpoint(path)
    for name in ("plan.json", "report.json"):
        if (path / name).is_file():
            return _json_file(path / name)
    raise EdgeError(f"{path} holds nothing that can be inspected", f"give {KNOWN}")


def _bundle(path: Path) -> Description:
    from minigpt_edge_runtime.bundle.manifest import read_manifest
    from minigpt_edge_runtime.bundle.open import read_bundle

    manifest = read_manifest(path)
    base = manifest["base_model"]
    facts: dict[str, Any] = {
        "name": manifest["name"],
        "base_model": base.get("name") or base.get("source"),
        "licences": manifest["licences"],
        "domain": manifest["domain"],
        "corpus_sha256": manifest["corpus_sha256"],
        "targets": manifest["targets"],
        "files": len(manifest["files"]),
        "bytes": sum(int(record.get("bytes", 0)) for record in manifest["files"].values()),
        "made_by": f"minigpt-edge {manifest.get('minigpt_edge')}",
    }
    if (path / "report.json").is_file():
        facts.update(_report_facts(read_json(path / "report.json")))
    names = manifest.get("model_files", [manifest["model_file"]])
    models = [describe(read_bundle(path, name).model_path) for name in names]
    return {"kind": "bundle", "path": str(path), "facts": facts, "models": models, "manifest": manifest}


def _checkpoint(path: Path) -> Description:
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or "model_type" not in config:
        raise EdgeError(f"{path / 'config.json'} is not a model's configuration", f"give {KNOWN}")
    count = int(config.get("num_hidden_layers", 0))
    per_block = config.get("per_layer_config", {})
    keys = {
        "ffn_width": "intermediate_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
    }
    blocks = [
        {
            "block": i,
            **{name: per_block.get(str(i), {}).get(key, config.get(key)) for name, key in keys.items()},
        }
        for i in range(count)
    ]
    facts: dict[str, Any] = {
        "model_type": config["model_type"],
        "blocks": count,
        "hidden": config.get("hidden_size"),
        "head_dim": config.get("head_dim"),
        "context": config.get("max_position_embeddings"),
        "vocabulary": config.get("vocab_size"),
        "tied_embeddings": config.get("tie_word_embeddings"),
        "unequal_blocks": bool(per_block),
        "tokenizer": (path / TOKENIZER).is_file(),
        "chat_template": bool(chat_templates(path, read_tokenizer_config(path))),
        **config.get("minigpt_edge", {}),
    }
    weights = sorted(path.glob("*.safetensors"))
    sizes = _safetensors(weights) if weights else {}
    facts.update(sizes.get("facts", {}))
    found = {k: v for k, v in sizes.items() if k != "facts"}
    return {"kind": "checkpoint", "path": str(path), "facts": facts, "blocks": blocks, **found}


def _safetensors(paths: Sequence[Path]) -> Description:
    """Parameters and bytes by the headers of safetensors files; EdgeError if one is damaged or truncated."""
    types = by_type(
        (tensor["dtype"], math.prod(tensor["shape"]), tensor["data_offsets"][1] - tensor["data_offsets"][0])
        for path in paths
        for tensor in _stored(path)
    )
    totals = {name: sum(record[name] for record in types.values()) for name in ("parameters", "bytes")}
    return {"facts": totals, "tensor_types": types}


def _stored(path: Path) -> list[dict[str, Any]]:
    """The tensors' records in a safetensors file's header."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            header = json.loads(file.read(length)) if length < size else None
        tensors = [v for k, v in header.items() if k != "__metadata__"]  # type: ignore[union-attr]
        end = 8 + length + max((t["data_offsets"][1] for t in tensors), default=0)
    except OSError as error:
        raise os_error(error, path) from error
    except (struct.error, ValueError, AttributeError, TypeError, KeyError) as error:
        raise EdgeError(f"{path} is not a safetensors file, or is truncated", "make it again") from error
    if end > size:
        raise EdgeError(f"{path} is truncated: it has {size:,} bytes of {end:,}", "make it again")
    return tensors


def _json_file(path: Path) -> Description:
    content = read_json(path)
    if isinstance(content, dict) and content.get("schema") == SCHEMA:
        report = read_report(path)
        facts = {"created": report["created"], "profile": report["profile"]}
        facts |= {name: report["artefact"][name] for name in ("name", "file", "quantization", "bundle")}
        facts |= {"cpu": report["device"]["cpu"], "threads": report["settings"]["n_threads"]}
        return {"kind": "latency report", "path": str(path), "facts": facts | _flat(report["summary"])}
    if isinstance(content, dict) and isinstance(content.get("models"), list):
        return {"kind": "report", "path": str(path), "facts": _report_facts(content)}
    if isinstance(content, dict) and isinstance(content.get("blocks"), list):
        return _plan(path, content)
    raise EdgeError(f"{path} is neither a plan nor a report", f"give {KNOWN}")


def _plan(path: Path, plan: Mapping[str, Any]) -> Description:
    """A plan as `minigpt_edge.prune.plan` writes it: what is kept, as index ranges like "0-2,7"."""
    with understanding(path, "give a plan.json that a build has written"):
        blocks = [
            {"block": i, "ffn_width": _count(block["neurons"]), "kv_groups": _count(block["kv_groups"])}
            for i, block in enumerate(plan["blocks"])
        ]
        facts = {
            "method": plan["method"],
            "sparsity": float(plan["sparsity"]),
            "parameters_before": int(plan["parameters"]["dense"]),
            "parameters_after": int(plan["parameters"]["kept"]),
            "vocabulary": _count(plan["vocabulary"]["tokens"]),
            "blocks": len(blocks),
            "made_for": plan["model"],
        }
    return {"kind": "plan", "path": str(path), "facts": facts, "blocks": blocks}


def _count(ranges: str) -> int:
    """How many indices "0-2,7,9-10" names."""
    total = 0
    for part in ranges.split(",") if ranges else []:
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return total


def _report_facts(report: Any) -> dict[str, Any]:
    """A report's headline: sparsity, ratios, and size, quality and speed of each model."""
    if not isinstance(report, dict):
        return {}
    facts: dict[str, Any] = {name: report[name] for name in ("name", "domain", "created") if name in report}
    facts.update(
        _flat({name: report[name] for name in ("sparsity", "ratios") if isinstance(report.get(name), dict)})
    )
    for model in report.get("models", []):
        quality, speed = model.get("quality") or {}, model.get("speed") or {}
        parts = [
            _unit(model.get("bytes"), 1e-6, "MB", 1),
            _unit(quality.get("bits_per_byte"), 1, "bits/byte", 4),
            _unit(speed.get("decode_tokens_per_second"), 1, "tokens/s", 1),
            _unit(speed.get("peak_rss_mb"), 1, "MB peak memory", 0),
        ]
        facts[str(model.get("label", model.get("file")))] = ", ".join(part for part in parts if part)
    return facts


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested records as "a.b" facts; long lists as their length."""
    facts: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            facts.update(_flat(value, f"{prefix}{name}."))
        else:
            facts[prefix + name] = value if not isinstance(value, list) or len(value) <= 4 else len(value)
    return facts


def _at(value: Any, index: int) -> Any:
    """A per-block value: arrays by index, one value for all otherwise."""
    if isinstance(value, list):
        return value[index] if index < len(value) else None
    return value


def _join(*parts: Any) -> str | None:
    return " / ".join(str(part) for part in parts if part is not None) or None


def _unit(value: Any, scale: float, unit: str, digits: int) -> str:
    return "" if not isinstance(value, int | float) else f"{value * scale:,.{digits}f} {unit}"
