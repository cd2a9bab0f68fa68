"""What the peers' scripts have in common; they run in environments without this project.

A script is called `SCRIPT CHECKPOINT OUT WINDOWS --variant NAME --fraction F --threads N` and writes OUT: a
Hugging Face directory, and peer.json with what it was set to, how long it worked and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RECORD = "peer.json"
BATCH = 4  # calibration windows of one pass
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def arguments(variants: Sequence[str]) -> argparse.Namespace:
    """The command line of a peer's script; sets torch's threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("windows", type=Path, help="calibration token ids, a .npy file, int64 [windows, s]")
    parser.add_argument("--variant", choices=variants, required=True)
    parser.add_argument("--fraction", type=float, default=0.0, help="of all parameters, to remove")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    given.out.mkdir(parents=True)
    return given


def load_model(checkpoint: Path) -> Any:
    """The dense model in float32, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def read_batches(windows: Path, size: int = BATCH) -> list[dict[str, Any]]:
    """Calibration batches as models take them: input_ids and attention_mask, int64 [at most size, s]."""
    import numpy as np
    import torch

    ids = torch.from_numpy(np.load(windows))
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(size)]


@contextmanager
def measuring() -> Iterator[dict[str, Any]]:
    """Time what the peer does, without imports, loading and saving; the seconds are there afterwards."""
    record: dict[str, Any] = {}
    began = time.perf_counter()
    yield record
    record["work_seconds"] = round(time.perf_counter() - began, 2)


def save_model(model: Any, given: argparse.Namespace, record: dict[str, Any]) -> None:
    """Write the Hugging Face directory with the tokenizer as it was, and the record."""
    model.save_pretrained(given.out)
    for name in TOKENIZER_FILES:
        if (given.checkpoint / name).exists():
            shutil.copyfile(given.checkpoint / name, given.out / name)
    save_record(given, record)


def save_record(given: argparse.Namespace, record: dict[str, Any]) -> None:
    """Write what is known of this run; the peak (bytes) is this process's own, by the kernel's account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    whole = {"variant": given.variant, **record, "peak_rss": peak}
    (given.out / RECORD).write_text(json.dumps(whole, indent=2) + "\n")
