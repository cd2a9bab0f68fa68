"""Install minigpt-edge for development into the environment of the Python that runs this file.

    python3 -m venv .venv && .venv/bin/python tools/install.py

Needs pip and a C++ compiler. Three steps, because two of the packages need care: torch (on Linux the CPU
build, or one for the GPU that is there) and llama-cpp-python (compiled here, with only the parts that are
used). Everything is pinned by constraints.txt, and pip takes no file whose sha256 is not in hashes.txt
(tools/lock.py writes it), but for the libraries that torch for a GPU brings along.

TORCH in the environment chooses torch's build: cpu, cuda (the package index's own, with CUDA), or a folder of
download.pytorch.org/whl such as cu126, rocm7.0 or xpu. Without it: cuda where nvidia-smi is, else cpu.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
HASHES = ROOT / "hashes.txt"
SLIM = ROOT / "tools" / "llama_cpp.cmake"
WHEELS = "https://download.pytorch.org/whl"
CPU, CUDA = "cpu", "cuda"  # builds of torch
PYPI = "https://pypi.org/simple"
BUILD = ("editables", "hatchling")  # what installs the project itself
DEVELOPMENT = (
    "jsonschema",
    "lm-eval",
    "mypy",
    "onnxruntime-genai",
    "openai",
    "playwright",
    "pytest",
    "pytest-xdist",
    "ruff",
)


def main() -> int:
    """Install everything; returns the exit status (0 done, 1 failed with a message on stderr)."""
    if sys.version_info < (3, 11):  # noqa: UP036 - runs before any package's own check
        return fail(f"this is Python {sys.version.split()[0]}", "use Python 3.11 or newer")
    if sys.prefix == sys.base_prefix:
        return fail(
            "this Python is not in a virtual environment",
            "python3 -m venv .venv, then .venv/bin/python tools/install.py",
        )
    if not (torch() and llama_cpp() and project()):
        return fail(
            "the installation did not finish", "see pip's message above, then run the same command again"
        )
    return 0


def torch() -> bool:
    """Install the pinned torch in the build that was asked for, or that fits this machine."""
    wanted, build = pinned("torch"), torch_build()
    if installed("torch") == wanted and (build in (built("torch"), None) or not os.environ.get("TORCH")):
        return True  # nothing that works is replaced unasked
    if build is None:
        return pip(f"torch=={wanted}")
    if build == CUDA:
        say(f"torch {wanted} with CUDA, several GB (TORCH=cpu: 190 MB); NVIDIA's libraries have no hash here")
        return checked([f"torch=={wanted}"], "--no-deps", "--force-reinstall") and pip(f"torch=={wanted}")
    place = f"{WHEELS}/{build}"
    if build != CPU:
        say(f"torch {wanted}+{build} from {place}, several GB, which have no hash here")
        return pip("--index-url", place, "--extra-index-url", PYPI, f"torch=={wanted}+{build}")
    say(f"torch {wanted} for the CPU, about 190 MB")
    index = ("--no-deps", "--extra-index-url", place, "--retries", "1", "--timeout", "15")
    known = sys.version_info[:2] == (3, 11) and platform.machine() == "x86_64"
    if checked([f"torch=={wanted}+cpu"], *index) if known else pip(*index, f"torch=={wanted}+cpu"):
        return True
    say(
        f"no CPU build of torch within reach (it is at {place}); the package index's own follows, "
        "which on Linux brings several GB of CUDA libraries that this machine does not need"
    )
    return pip(f"torch=={wanted}")


def torch_build() -> str | None:
    """The build of torch to install; None where there is one alone (macOS and Windows, unless asked for)."""
    asked = os.environ.get("TORCH", "").strip().lower()
    if asked and not re.fullmatch(r"[a-z0-9.]+", asked):
        sys.exit(fail(f"TORCH={asked} is no build of torch", "such as cpu, cuda, cu126, rocm7.0 or xpu"))
    if asked or sys.platform != "linux":
        return asked or None
    return CUDA if shutil.which("nvidia-smi") else CPU


def llama_cpp() -> bool:
    """Compile and install the pinned llama-cpp-python without the libraries that are not used here."""
    wanted = pinned("llama-cpp-python")
    if installed("llama-cpp-python") == wanted:
        return True
    if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        how = (
            "xcode-select --install"
            if sys.platform == "darwin"
            else "on Debian and Ubuntu: apt-get install build-essential"
        )
        sys.exit(fail("no C++ compiler found, and llama.cpp has to be compiled", how))
    hook = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE={shlex.quote(str(SLIM))}"
    arguments = f"{os.environ.get('CMAKE_ARGS', '')} {hook}".strip()
    cores = os.cpu_count() or 1
    cache = own_pip_cache(arguments)
    environment = {"CMAKE_ARGS": arguments}
    if cache is not None:
        environment["PIP_CACHE_DIR"] = str(cache)
    if cache is not None and (cache / "wheels").is_dir():
        say("llama.cpp, as an earlier installation compiled it")
    else:
        say(
            "llama.cpp is compiled for this processor, without its multimodal and common libraries: "
            f"about 3 minutes of processor time, shared by {cores} core{'s' * (cores > 1)}"
        )
    return checked([f"llama-cpp-python=={wanted}"], "--no-deps", **environment)


def project() -> bool:
    """Install the project, linked to this folder, and all else that it and its development need."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        if not pip("--dry-run", "--quiet", "--report", str(report), *declared, *BUILD, *DEVELOPMENT):
            return False
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    pins = [f"{part['metadata']['name']}=={part['metadata']['version']}" for part in found]
    if pins and not checked(pins, "--no-deps"):
        return False
    return pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))


def own_pip_cache(cmake_arguments: str) -> Path | None:
    """A folder inside pip's cache for wheels compiled with these arguments; None where pip keeps no cache.

    pip's key of a compiled wheel leaves CMAKE_ARGS out: in the common cache our slim wheel would be installed
    into other projects too, and theirs here.
    """
    asked = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True)
    if asked.returncode != 0:
        return None
    content = cmake_arguments.replace(str(SLIM), SLIM.read_text(encoding="utf-8"))
    return Path(asked.stdout.strip()) / f"minigpt-edge-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def pinned(name: str) -> str:
    """The version of `name` in constraints.txt; KeyError if there is none."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE))
    return pins[name]


def installed(name: str) -> str | None:
    """The version of `name` in this environment, without its local part (2.13.0+cpu is 2.13.0)."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def built(name: str) -> str:
    """The local part of an installed version, "cuda" where it has none: what 2.13.0+cpu is built for."""
    return importlib.metadata.version(name).partition("+")[2] or CUDA


def pip(*arguments: str, **environment: str) -> bool:
    """Run `pip install` in this environment under the constraints; True if it succeeded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *arguments]
    if "--require-hashes" not in arguments:  # which take exact versions, and no constraints
        command += ["-c", str(CONSTRAINTS)]
    return (
        subprocess.run(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL).returncode == 0
    )


def checked(pins: list[str], *arguments: str, **environment: str) -> bool:
    """Install exact versions from files whose hashes are in hashes.txt alone; True if it succeeded."""
    known = {}
    for entry in HASHES.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        pin, *hashes = entry.split() or [""]
        known[pin] = hashes
    lines = []
    for pin in pins:
        name, _, version = pin.partition("==")
        plain = f"{re.sub(r'[-_.]+', '-', name).lower()}=={version.split('+')[0]}"
        if not known.get(plain):
            say(f"hashes.txt has no file of {plain}: run tools/lock.py after a change of constraints.txt")
            return False
        lines.append(" ".join((pin, *known[plain])))
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(lines), encoding="utf-8")
        return pip(*arguments, "--require-hashes", "-r", str(wanted), **environment)


def say(text: str) -> None:
    """Tell the user what comes next, before a step that takes a while."""
    print(f"\n==> {text}\n", file=sys.stderr, flush=True)


def fail(message: str, hint: str) -> int:
    """Print an error with what to do about it; returns exit status 1."""
    print(f"error: {message}\nhint: {hint}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
