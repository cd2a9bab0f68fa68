"""Imports point one way, and the device's package runs without torch, transformers and the other two.

Modules of minigpt_edge that are all tensor code import torch at their top and say so (`noqa: TID253`).
The others import it, and them, inside functions, so that commands start quickly and errors come without it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from source import PACKAGES, ROOT, at_import_time, imports, module_name, sources

MAY_IMPORT = {
    "minigpt_edge": {"minigpt_edge_export", "minigpt_edge_runtime"},
    "minigpt_edge_export": {"minigpt_edge_runtime"},
    "minigpt_edge_runtime": set(),
}
TRAINING = {"torch", "transformers", "datasets", "accelerate"}
TENSOR_CODE = "noqa: TID253"
HEAVY = TRAINING | {"numpy", "llama_cpp", "tokenizers", "matplotlib", "pyarrow"}


def wrong_imports(package: str, source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module of `package` imports against the rules, as "line: name"."""
    tree = ast.parse(source)
    now = at_import_time(tree)
    if package == "minigpt_edge" and TENSOR_CODE in source:
        now = set()
    wrong = []
    for name, statement in imports(tree, module, is_package):
        top = name.partition(".")[0]
        ours = top in PACKAGES and top != package and top not in MAY_IMPORT[package]
        training = top in TRAINING and (package != "minigpt_edge" or statement in now)
        if ours or training:
            wrong.append(f"{statement.lineno}: {name}")
    return wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    found = {}
    for path in sources(package):
        module = module_name(path, package)
        if bad := wrong_imports(package, path.read_text(), module, path.name == "__init__.py"):
            found[str(path.relative_to(ROOT))] = bad
    assert sources(package)
    assert found == {}


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        (
            "minigpt_edge_runtime",
            "def f():\n    import minigpt_edge_export.gguf",
            ["2: minigpt_edge_export.gguf"],
        ),
        ("minigpt_edge_export", "from minigpt_edge import plan", ["1: minigpt_edge"]),
        ("minigpt_edge_export", "def f():\n    from torch import nn", ["2: torch"]),
        ("minigpt_edge", "import torch.nn", ["1: torch.nn"]),
        ("minigpt_edge", "import torch.nn  # noqa: TID253", []),
        ("minigpt_edge_export", "import torch.nn  # noqa: TID253", ["1: torch.nn"]),
        ("minigpt_edge", "try:\n    import transformers\nexcept ImportError:\n    pass", ["2: transformers"]),
        ("minigpt_edge", "class A:\n    import torch", ["2: torch"]),
        ("minigpt_edge", "def f():\n    import torch", []),
        ("minigpt_edge", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", []),
        (
            "minigpt_edge",
            "from minigpt_edge_export import gguf\nfrom . import plan\nfrom .archs import llama",
            [],
        ),
    ],
)
def test_the_scan_sees_what_it_has_to(package: str, source: str, wrong: list[str]) -> None:
    assert wrong_imports(package, source, f"{package}.module") == wrong


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter with the three packages on its path; its stdout."""
    path = ":".join(str(folder.parent) for folder in PACKAGES.values())
    result = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = {path.split(':')!r}\n{code}", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=Path(sys.prefix),
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


BLOCK = """
class Blocked:
    names = {names!r}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is blocked in this test")
sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.whole
@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("minigpt_edge_runtime", TRAINING | {"minigpt_edge", "minigpt_edge_export"}),
        ("minigpt_edge_export", TRAINING | {"minigpt_edge"}),
        ("minigpt_edge", TRAINING),
    ],
)
def test_every_module_imports_without(package: str, blocked: set[str]) -> None:
    files = [path for path in sources(package) if path.name != "__main__.py"]
    modules = [module_name(path, package) for path in files if TENSOR_CODE not in path.read_text()]
    code = (
        BLOCK.format(names=blocked)
        + "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    loaded = python(code + "print(*sys.modules)", *modules).split()
    assert set(modules) <= set(loaded)
    assert not blocked & set(loaded)


def test_the_block_blocks() -> None:
    code = BLOCK.format(names={"json"}) + "try:\n    import json.decoder\nexcept ImportError as e: print(e)"
    assert "blocked in this test" in python("import sys\nsys.modules.pop('json', None)\n" + code)


@pytest.mark.parametrize("package", ["minigpt_edge", "minigpt_edge_runtime"])
def test_help_imports_nothing_heavy(package: str) -> None:
    code = f"""
from {package}.cli import main
sys.argv = ["command", "--help"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print("LOADED", *sys.modules)
"""
    shown, _, loaded = python(code).partition("LOADED")
    assert "Usage:" in shown
    assert not HEAVY & set(loaded.split())
