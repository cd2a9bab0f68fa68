"""The runtime stands alone: no torch, no transformers, nothing of the packages above it."""

from __future__ import annotations

from pathlib import Path

import pytest
from alone import ALONE, BLOCK, PACKAGE, python


def test_every_module_imports_alone() -> None:
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    assert len(names) > 15
    done = python(f"{ALONE}\nimport importlib\nfor n in {names}: importlib.import_module(n)\nprint('all')")
    assert done.stdout == "all\n", done.stderr


@pytest.mark.parametrize("verb", ["run", "inspect", "verify"])
def test_verbs_work_alone(verb: str, bundle: Path) -> None:
    args = {"run": [str(bundle), "The", "--max-tokens", "2", "--threads", "1"]}.get(verb, [str(bundle)])
    done = python(f"{ALONE}\nfrom minigpt_edge_runtime.cli import main; main()", verb, *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["bench", "--help"], ["inspect", "--help"]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    heavy = BLOCK.replace("BLOCKED", "('numpy', 'llama_cpp', 'rich', 'tokenizers', 'torch')")
    done = python(f"{heavy}\nfrom minigpt_edge_runtime.cli import main; main()", *args)
    assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr


def test_without_llama_cpp_the_message_says_what_to_install(bundle: Path) -> None:
    code = BLOCK.replace("BLOCKED", "('llama_cpp',)")
    done = python(f"{code}\nfrom minigpt_edge_runtime.cli import main; main()", "run", str(bundle), "x")
    assert done.returncode == 1 and 'pip install "minigpt-edge-runtime[gguf]"' in done.stderr
