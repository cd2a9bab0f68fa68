"""What is built and installed: one wheel with the three packages and their data, and the runtime alone."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from source import PACKAGES, ROOT, imports, module_name, sources

from minigpt_edge_runtime import __version__

DATA = {".toml", ".html", ".json", ".txt"}


def normal(name: str) -> str:
    """A project name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """constraints.txt as name -> version; fails on a line that is not an exact pin."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if line)  # type: ignore[union-attr]


def requirements(pyproject: Path) -> dict[str, str]:
    """Declared dependencies, those of extras too, as name -> lowest version."""
    project = tomllib.loads(pyproject.read_text())["project"]
    declared = [*project["dependencies"], *sum(project.get("optional-dependencies", {}).values(), [])]
    return {normal(m[1]): m[2] for line in declared if (m := re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line))}


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    declared = requirements(ROOT / "pyproject.toml")
    assert declared
    for name, lowest in declared.items():
        if name != "pip":  # comes with the environment
            assert numbers(pins()[name]) >= numbers(lowest), name


def test_every_pin_has_hashes() -> None:
    """Otherwise the installation stops there."""
    text = (ROOT / "hashes.txt").read_text().replace(" \\\n", "")
    entries = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert {entry[0] for entry in entries} == {f"{normal(name)}=={v}" for name, v in pins().items()}
    assert all(entry[1:] for entry in entries)
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for entry in entries for h in entry[1:])


def numbers(version: str) -> list[int]:
    """The release part of a version, for comparing."""
    return [int(part) for part in re.findall(r"\d+", version.split("+")[0])]


def test_torch_is_pinned_without_a_local_version() -> None:
    """`+cpu` would make the pin impossible to meet where the CPU index can't be reached."""
    assert re.fullmatch(r"[\d.]+", pins()["torch"])


@pytest.mark.whole
def test_what_is_imported_is_declared() -> None:
    declared = set(requirements(ROOT / "pyproject.toml"))
    providers = importlib.metadata.packages_distributions()
    imported: dict[str, str] = {}
    for package in PACKAGES:
        for path in sources(package):
            module = module_name(path, package)
            for name, _ in imports(ast.parse(path.read_text()), module, path.name == "__init__.py"):
                imported.setdefault(name.partition(".")[0], str(path.relative_to(ROOT)))
    assert {"torch", "onnxruntime", "starlette"} <= imported.keys()
    missing = {}
    for name, where in imported.items():
        if name in sys.stdlib_module_names or name in PACKAGES:
            continue
        if not declared & {normal(project) for project in providers.get(name, [name])}:
            missing[name] = where
    assert missing == {}


def build_wheel(project: Path, out: Path) -> zipfile.ZipFile:
    """Build a project's wheel as pip does, with the build backend from the package index."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(out)]
    done = subprocess.run([*pip, str(project)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.slow
def test_the_wheel_holds_all_three_packages_and_their_data(tmp_path: Path) -> None:
    names = set(build_wheel(ROOT, tmp_path).namelist())
    for package, folder in PACKAGES.items():
        wanted = [
            path
            for path in folder.rglob("*")
            if path.suffix in DATA | {".py"} and "__pycache__" not in path.parts
        ]
        assert wanted
        for path in wanted:
            assert f"{package}/{path.relative_to(folder).as_posix()}" in names
    assert f"minigpt_edge-{__version__}.dist-info/METADATA" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {*PACKAGES, f"minigpt_edge-{__version__}.dist-info"}


@pytest.mark.slow
def test_the_runtime_installs_and_starts_alone(tmp_path: Path) -> None:
    """In a bare environment, with what its --help needs and nothing else."""
    home = tmp_path / "device"
    venv.create(home, with_pip=True, symlinks=os.name != "nt")
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(ROOT / "runtime")], check=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), "click", "rich"],
        check=True,
    )
    command = python.with_name("minigpt-edge-runtime")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "inspect" in shown.stdout
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    ).stdout
    installed = {normal(line.split("==")[0]) for line in listed.splitlines()}
    assert "minigpt-edge-runtime" in installed
    assert not installed & {"minigpt-edge", "torch", "transformers", "numpy"}
