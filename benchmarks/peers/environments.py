"""The peers' virtual environments, pinned, made from the package index when they are first needed.

python benchmarks/peers/environments.py genai     makes it and prints its Python
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_runtime.files import write_json

# optimum-onnx 0.1.0 holds transformers below 4.58. torch is the one that this project pins.
RUNTIME = ("onnxruntime==1.32.0", "onnx==1.23.2", "numpy==2.4.6")
PINS: dict[str, tuple[str, ...]] = {
    "genai": (
        *RUNTIME,
        "onnxruntime-genai==0.18.0",
        "transformers==5.23.0",
        "onnxscript==0.7.2",
        "onnx-ir==1.1.0",
        "tqdm==4.70.1",
    ),
    "optimum": (*RUNTIME, "optimum-onnx[onnxruntime]==0.1.0", "optimum==2.1.0", "transformers==4.57.6"),
    "torch-pruning": ("torch-pruning==1.6.1",),
    "optipfair": ("optipfair==0.4.2",),
    "csv": ("clevercsv==0.8.5", "duckdb==2.0.1"),
    # llmcompressor holds transformers at or below 5.17 and auto-round at or below 0.15.1
    "llmcompressor": (
        "llmcompressor==0.14.0.1",
        "compressed-tensors==0.19.0",
        "transformers==5.17.0",
        "huggingface-hub==1.33.0",
        "auto-round==0.15.1",
        "py-cpuinfo==9.0.0",
    ),
}
# These see the packages of the environment this runs in, but for those that their own pins replace: torch
# and transformers are there already, and would take a gigabyte each time.
BORROWING = ("torch-pruning", "optipfair", "llmcompressor", "csv")
TORCH = "2.13.0"
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
PROJECT = "project"  # the environment this runs in


def python(name: str) -> Path:
    """The Python of an environment, made if it is missing or was made with other pins."""
    if name == PROJECT:
        return Path(sys.executable)
    folder = cache_dir() / "peers" / "environments" / name
    marker, pins = folder / "pins.json", [f"torch=={TORCH}", *PINS[name]]
    borrowed = sysconfig.get_path("purelib") if name in BORROWING else None
    made_of = [*pins, *([f"borrows {borrowed}"] if borrowed else [])]
    if not marker.exists() or json.loads(marker.read_text()) != made_of:
        print(f"making the environment {name} in {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        if borrowed:
            _borrow(folder, borrowed)
        else:
            _install_torch(folder)
        _pip(folder, *pins)
        write_json(marker, made_of)
    return folder / "bin" / "python"


def versions(name: str) -> dict[str, str]:
    """The packages of an environment."""
    listed = subprocess.run(
        [str(python(name)), "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    )
    return {package["name"]: package["version"] for package in json.loads(listed.stdout)}


def _borrow(folder: Path, packages: str) -> None:
    """Let an environment see another's packages, after its own (editable ones, this project, stay hidden)."""
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(own) / "borrowed.pth").write_text(packages + "\n")


def _install_torch(folder: Path) -> None:
    """The build without CUDA, if it can be had; else it comes with the rest, which needs gigabytes more."""
    with suppress(subprocess.CalledProcessError):
        index = ("--extra-index-url", CPU_TORCH, "--retries", "1", "--timeout", "15")
        _pip(folder, "--no-deps", *index, f"torch=={TORCH}+cpu")


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)


if __name__ == "__main__":
    print(python(sys.argv[1]))
