"""What pruning and recovery took in memory beside what was estimated, without a limit and with one.

    python benchmarks/speed/memory.py [--model NAME] [--calibration-tokens N] [--recover-tokens N]

The default model on the law domain, every build in a process of its own: as it is, with adapters, and with
the least `--max-memory` that the estimates allow. Fine-tuning is short, which takes no less memory. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib.results import RESULTS, write_result

RESULT = RESULTS / "memory.json"
STAGES = ("prune", "recover")


def estimates(base: Path, pruned: Path, given: argparse.Namespace, limit: int | None, lora: bool) -> Any:
    """Bytes that `build` reckons with for each stage, and the tokens of one pass."""
    from minigpt_edge.models.checkpoint import read_config, stored_parameters
    from minigpt_edge.prune.memory import of_pruning, stays_on_disk
    from minigpt_edge.prune.settings import WINDOW
    from minigpt_edge.recover.config import STEP_TOKENS
    from minigpt_edge.recover.memory import Recovery

    config, parameters, tokens = read_config(base), stored_parameters(base), given.calibration_tokens
    lazy = stays_on_disk(base, tokens, limit, may=True)
    room = Recovery(pruned, lora, limit)
    micro = room.micro_tokens(STEP_TOKENS, WINDOW)
    pruning = of_pruning(config, parameters, tokens, lazy=lazy)
    return {"prune": pruning, "recover": room.needed(micro)}, micro


def least(base: Path, pruned: Path, tokens: int) -> int:
    """The least limit, in bytes, under which neither stage is refused."""
    from minigpt_edge.models.checkpoint import read_config, stored_parameters
    from minigpt_edge.prune.memory import of_pruning
    from minigpt_edge.prune.settings import WINDOW
    from minigpt_edge.recover.memory import Recovery

    pruning = of_pruning(read_config(base), stored_parameters(base), tokens, lazy=True)
    return max(pruning, Recovery(pruned, lora=False, limit=None).needed(WINDOW))


def build(folder: Path, given: argparse.Namespace, *options: str) -> dict[str, dict[str, Any]]:
    """The manifests of a build's stages, by name."""
    command = [sys.executable, "-m", "minigpt_edge", "build", "--domain", "law"]
    command += ["--work", str(folder / "work"), "--out", str(folder / "out"), "--force"]
    command += ["--no-baseline", *options]
    command += ["--calibration-tokens", str(given.calibration_tokens)]
    command += ["--recover-tokens", str(given.recover_tokens), "--target", "gguf-q8_0"]  # quickest
    command += ["--model", given.model] if given.model else []
    subprocess.run(command, check=True)
    newest = sorted(folder.glob("work/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    records = [json.loads(path.read_text()) for path in newest]
    return {record["stage"]: record for record in records}


def measured(
    folder: Path, base: Path, given: argparse.Namespace, *, lora: bool = False, limit: int | None = None
) -> list[dict[str, Any]]:
    """Build, and give the rows of pruning and recovery."""
    options = ["--lora-rank", "16"] if lora else []
    options += ["--max-memory", str(limit)] if limit else []
    stages = build(folder, given, *options)
    (pruned,) = folder.glob("work/prune-*/checkpoint")
    estimated, micro = estimates(base, pruned, given, limit, lora)
    rows = [
        {
            "stage": name,
            "lora": lora,
            "limit_bytes": limit,
            "estimated_bytes": estimated[name],
            "peak_bytes": round(stages[name]["peak_rss_mb"] * 1e6),
            "seconds": stages[name]["seconds"],
            "micro_tokens": micro if name == "recover" else None,
        }
        for name in STAGES
    ]
    print(json.dumps(rows, indent=2))
    return rows


def main() -> None:
    """Three builds, and a row for each of their stages."""
    from minigpt_edge.models.base_model import resolve_model
    from minigpt_edge.stages.parallel import all_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="short name, directory or hub id [default: the default model]")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--recover-tokens", type=int, default=8192)
    given = parser.parse_args()
    base = resolve_model(given.model)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as free, tempfile.TemporaryDirectory() as narrow:
        rows += measured(Path(free), base.path, given)
        (pruned,) = Path(free).glob("work/prune-*/checkpoint")
        rows += measured(Path(free), base.path, given, lora=True)[1:]  # pruning is the same
        limit = least(base.path, pruned, given.calibration_tokens)
        rows += measured(Path(narrow), base.path, given, limit=limit)
    record = {
        "model": base.name,
        "threads": all_cores(),
        "calibration_tokens": given.calibration_tokens,
        "recover_tokens": given.recover_tokens,
        "rows": rows,
    }
    write_result(RESULT, record)


if __name__ == "__main__":
    main()
