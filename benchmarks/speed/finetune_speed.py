"""How much of the machine's matrix-product rate recovery reaches.

    python benchmarks/speed/finetune_speed.py [--threads 2] [--device DEVICE] [--variant compiled …]

Writes benchmarks/results/finetune_speed.json, or on an accelerator finetune_speed-KIND.json: "compiled" is
what recovery does, "uncompiled" what it falls back to without a compiler, "plain" an ordinary loop around
transformers' model under bf16 autocast.

The model has the size of the default build's shrunk one (30 blocks, hidden 576, FFN 800, 9 heads and 3 KV
groups, vocabulary 16,384) with random weights; a step is forward, loss, backward, clipping and AdamW.
"cpu" times are CPU seconds divided by the threads: what an idle machine's wall clock would show (with one
thread; more of them spend CPU time waiting for each other). Fractions divide by the product's rate on the
same clock. Take the figures of --threads 1 where other work shares the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch  # noqa: TID253
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: TID253

from benchmarks.lib.results import RESULTS, write_result
from minigpt_edge.models import forward
from minigpt_edge.models.chunked_loss import chunked_cross_entropy
from minigpt_edge.recover import fast_llama
from minigpt_edge.recover.flops import matmul_flops, training_flops
from minigpt_edge.stages.device import CPU, computing_on, describe, resolve, wait
from minigpt_edge.stages.parallel import all_cores
from minigpt_edge_runtime.bench.memory import peak_rss_bytes

RESULT = RESULTS / "finetune_speed.json"
VARIANTS = ("compiled", "uncompiled", "plain")


def shrunk_model() -> LlamaForCausalLM:
    """Random weights in the shape of the default build's shrunk model."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=16_384,
            hidden_size=576,
            intermediate_size=800,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
        )
    ).train()


def loss_function(variant: str, model: Any, ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Forward and loss: recovery's, what it falls back to without a compiler, and a plain autocast loop's."""
    known, labels = ids[:, :-1], ids[:, 1:]
    if variant == "plain":

        def plain() -> torch.Tensor:
            with torch.autocast(ids.device.type, dtype=torch.bfloat16):
                return model(input_ids=known, labels=known, use_cache=False).loss

        return plain
    parts = fast_llama.compiled_parts(model, *known.shape) if variant == "compiled" else None

    def fast() -> torch.Tensor:
        if parts:
            hidden = fast_llama.hidden_states(model, known, parts)
        else:
            hidden = forward.hidden_states(model, known)
        return chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, labels.flatten())

    return fast


def measure(variant: str, batch: int, length: int, seconds: float) -> dict[str, Any]:
    """Steps for `seconds` after one to warm up; the best step counts, others use the machine too."""
    threads = torch.get_num_threads()
    model = shrunk_model()
    ids = torch.randint(0, 16_384, (batch, length + 1))
    begun = time.monotonic()
    loss = loss_function(variant, model, ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    walls: list[float] = []
    cpus: list[float] = []
    prepared = time.monotonic() - begun
    deadline = time.monotonic() + seconds
    while len(walls) < 3 or time.monotonic() < deadline:
        wall, cpu = time.perf_counter(), time.process_time()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        walls.append(time.perf_counter() - wall)
        cpus.append((time.process_time() - cpu) / threads)
    matmul, wall = matmul_flops(), min(walls[1:])
    work = training_flops(model, length) * batch * length
    found = {
        "matmul_gflops": round(matmul / 1e9),
        "gflop_per_token": round(training_flops(model, length) / 1e9, 3),
        "tokens_per_second": round(batch * length / wall),
        "fraction": round(work / wall / matmul, 3),
        "prepare_seconds": round(prepared, 1),
        "steps": len(walls),
    }
    if ids.device.type != CPU:
        return {**found, "peak_device_memory_mb": round(torch.accelerator.max_memory_allocated() / 1e6)}
    cpu, cpu_matmul = min(cpus[1:]), threads * matmul_flops(clock=time.process_time)
    return {
        **found,
        "cpu_tokens_per_second": round(batch * length / cpu),
        "cpu_fraction": round(work / cpu / cpu_matmul, 3),
        "peak_memory_mb": round((peak_rss_bytes() or 0) / 1e6),
    }


def main() -> None:
    """Parse, measure each variant, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=all_cores())
    parser.add_argument("--device", default=CPU)
    parser.add_argument("--variant", dest="variants", action="append", choices=VARIANTS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    device, names = resolve(given.device), given.variants or VARIANTS
    with computing_on(device):
        variants = {name: measure(name, given.batch, given.length, given.seconds) for name in names}
    result = {
        **({} if device == CPU else {"device": describe(device, given.device)}),
        "batch": [given.batch, given.length],
        "variants": variants,
        "threads": given.threads,
    }
    path = RESULT if device == CPU else RESULT.with_stem(f"{RESULT.stem}-{device.partition(':')[0]}")
    write_result(path, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
