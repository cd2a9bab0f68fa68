"""A latency report in the form of `llama-bench -o json`, for the scripts that read that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What llama-bench prints of a plain CPU run, and our batch. Its readers join on these, so none may be null.
_PLAIN_CPU = {
    "n_batch": 512,
    "n_ubatch": 512,
    "cpu_strict": False,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 0,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": False,
    "flash_attn": False,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "use_mmap": True,  # older readers ask for it, newer llama-bench says load_mode
    "load_mode": "mmap",
    "lazy_mode": False,
    "embeddings": False,
    "no_op_offload": False,
    "no_host": False,
    "repack": True,
    "fit_target": 0,
    "fit_min_ctx": 0,
}


def as_llama_bench(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One record per prompt length and depth, with llama-bench's keys.

    The commit of the engine's source is not known to it, so `build_commit` is its package and version.
    """
    artefact, settings, runtime = report["artefact"], report["settings"], report["runtime"]
    parameters = artefact["parameters"] or 0
    common = {
        "build_commit": runtime["package"],
        "build_number": 0,
        "cpu_info": report["device"]["cpu"] or report["device"]["architecture"],
        "gpu_info": "",
        "backends": "CPU" if runtime["name"] == "llama.cpp" else runtime["name"],
        "model_filename": artefact["file"],
        "model_type": f"{artefact['architecture']} {parameters / 1e6:.0f}M {artefact['quantization']}",
        "model_size": artefact["bytes"],
        "model_n_params": parameters,
        "n_threads": settings["n_threads"],
        "cpu_mask": hex(sum(1 << cpu for cpu in settings["pinned_cpus"] or [])),
        **_PLAIN_CPU,
    }
    measured = ("n_prompt", "n_gen", "n_depth", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts")
    return [
        {
            **common,
            **{key: test[key] for key in measured[:3]},
            "test_time": report["created"],
            **{key: test[key] for key in measured[3:]},
            "samples_ns": test["samples_ns"],
            "samples_ts": test["samples_ts"],
        }
        for test in [*report["prefill"], *report["decode"]]
    ]
