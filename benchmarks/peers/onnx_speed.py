"""This project's ONNX exports beside its peers': speed, size, memory, export, quality; in one run.

    python benchmarks/peers/onnx_speed.py --uniform CHECKPOINT --nonuniform CHECKPOINT --texts TEXTS

Makes the peers' environments and all exports where they are missing, then measures every file in processes of
its own, one round after another, so that a disturbance hits all. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import environments
import summary
from candidates import NONUNIFORM, UNIFORM, Candidate, export, given, model_bytes, own, peers

from benchmarks.lib.results import RESULTS, provenance
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_export.targets import PRECISIONS
from minigpt_edge_runtime.files import sha256_file, sha256_json, write_json

HERE = Path(__file__).resolve().parent
RESULT = RESULTS / "onnx.json"
INT4 = [name for name in PRECISIONS if name.startswith("int4")]
INCLUDES = {
    "prefill": "a prompt of seeded random token ids from an empty cache, and the greedy pick",
    "decode": "one token at a time from a depth on, each with its greedy pick; no tokenizing",
    "peak_rss": "the whole process in bytes: interpreter, libraries, weights, cache, logits",
    "optimum, transformers.exporters": "no shared cache buffers: present tensors grow, copied",
    "quality": "against the checkpoint in torch, held-out text decoded token by token",
}


def main() -> None:
    """Export, score, measure, print the tables, write the result."""
    options, load = arguments(), os.getloadavg()[0]
    if load > 0.5:
        print(f"warning: the machine is busy (load {load:.1f}), two threads suffer most", file=sys.stderr)
    checkpoints = {UNIFORM: options.uniform, NONUNIFORM: options.nonuniform}
    chosen = [c for c in peers() if not options.only or any(part in c.label for part in options.only)]
    chosen += own(options.precisions, dict(options.imatrix), options.texts)
    chosen = [c for c in chosen if checkpoints[c.model]] + options.ours
    if not chosen:
        raise SystemExit("error: nothing to measure\nhint: give --uniform, --nonuniform or --ours")
    paths, entries = [], []
    for candidate in chosen:
        path, made = export(candidate, checkpoints[candidate.model], options.work / "exports")
        paths.append(path)
        entries.append(
            {
                "label": candidate.label,
                "model": candidate.model,
                "ours": candidate.ours,
                "options": [*candidate.options, *(["calibrated"] if candidate.data else [])],
                "model_bytes": model_bytes(path),
                "export": made,
                "quality": None,
                "runs": {api: {str(n): [] for n in options.threads} for api in candidate.apis},
            }
        )
    if options.texts:
        add_quality(chosen, paths, entries, checkpoints, options)
    measure(chosen, paths, entries, options)
    ratios = summary.ratios(entries)
    print(summary.table(entries))
    print(summary.ratio_table(ratios))
    write_json(
        options.output, {**facts(chosen, options), "load_before": load, "ratios": ratios, "files": entries}
    )
    print(f"written: {options.output}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure ONNX exports side by side.")
    parser.add_argument("--uniform", type=Path, help="a checkpoint with equal blocks")
    parser.add_argument("--nonuniform", type=Path, help="a checkpoint with blocks of different sizes")
    parser.add_argument("--texts", type=Path, help="a texts.json of held-out windows, to score the files on")
    parser.add_argument("--imatrix", type=imatrix, action="append", default=[], metavar="MODEL=FILE")
    parser.add_argument("--precisions", nargs="*", default=INT4, choices=list(PRECISIONS), help="ours")
    parser.add_argument("--ours", type=given, action="append", default=[], metavar="MODEL:LABEL=PATH")
    parser.add_argument("--only", action="append", help="peers whose label contains this text")
    parser.add_argument("--work", type=Path, default=cache_dir() / "peers", help="keeps the exports")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3, help="samples of each process")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[16, 512], help="tokens before decoding")
    parser.add_argument("--generate-tokens", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, default=RESULT)
    return parser.parse_args()


def imatrix(text: str) -> tuple[str, Path]:
    """MODEL=FILE."""
    model, _, path = text.partition("=")
    if model not in (UNIFORM, NONUNIFORM) or not Path(path).is_file():
        raise SystemExit(f"error: {text!r} is not {UNIFORM}=FILE or {NONUNIFORM}=FILE")
    return model, Path(path)


def add_quality(
    chosen: list[Candidate],
    paths: list[Path],
    entries: list[dict[str, Any]],
    checkpoints: dict[str, Path | None],
    options: argparse.Namespace,
) -> None:
    """Score every file against its checkpoint."""
    references = {}
    for model, checkpoint in checkpoints.items():
        if checkpoint:
            key = [sha256_file(checkpoint / "model.safetensors"), sha256_file(options.texts)]
            references[model] = path = options.work / f"reference-{sha256_json(key)[:12]}.npz"
            if not path.exists():
                command = [sys.executable, str(HERE / "reference.py"), str(checkpoint), str(options.texts)]
                subprocess.run([*command, str(path)], check=True)
    for candidate, path, entry in zip(chosen, paths, entries, strict=True):
        if candidate.model in references:
            print(f"scoring: {candidate.model}, {candidate.label}", file=sys.stderr)
            score = ["--score", str(references[candidate.model])]
            entry["quality"] = process(path, candidate.apis[0], max(options.threads), score)


def measure(
    chosen: list[Candidate], paths: list[Path], entries: list[dict[str, Any]], options: argparse.Namespace
) -> None:
    """Fill in the runs: in every round everything once, in another order."""
    order = random.Random(0)
    jobs = [
        (number, api, threads)
        for number, candidate in enumerate(chosen)
        for api in candidate.apis
        for threads in options.threads
    ]
    settings = ["--depths", *map(str, options.depths)]
    for name in ("prompt_tokens", "generate_tokens", "repeat"):
        settings += ["--" + name.replace("_", "-"), str(getattr(options, name))]
    for turn in range(options.rounds):
        for done, (number, api, threads) in enumerate(order.sample(jobs, len(jobs))):
            label = f"{chosen[number].model}, {chosen[number].label}, {api}, {threads} threads"
            print(f"round {turn + 1}/{options.rounds}, {done + 1}/{len(jobs)}: {label}", file=sys.stderr)
            run = process(paths[number], api, threads, settings)
            entries[number]["runs"][api][str(threads)].append({"round": turn, **run})


def process(path: Path, api: str, threads: int, more: list[str]) -> dict[str, Any]:
    """One timing or scoring process."""
    if api == "llama.cpp":
        command = [str(environments.python(environments.PROJECT)), str(HERE / "run_gguf.py"), str(path)]
    else:
        command = [str(environments.python("genai")), str(HERE / "run_onnx.py"), str(path), "--api", api]
    done = subprocess.run([*command, "--threads", str(threads), *more], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"error: measuring {path} through {api} failed, see above")
    return dict(json.loads(done.stdout))


def facts(chosen: list[Candidate], options: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and settings."""
    used = sorted({candidate.environment for candidate in chosen} | {"genai", environments.PROJECT})
    names = ("prompt_tokens", "depths", "generate_tokens", "rounds", "repeat", "threads")
    return {
        **provenance(),
        "settings": {name: getattr(options, name) for name in names},
        "includes": INCLUDES,
        "versions": {name: environments.versions(name) for name in used},
    }


if __name__ == "__main__":
    main()
