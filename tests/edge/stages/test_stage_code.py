"""A stage's key covers the code that makes it: every stage of a build is watched, in all its processes."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from source import PACKAGES, ROOT, at_import_time, module_name, sources
from tiny_build import write_corpus, write_model

from minigpt_edge.stages import stage as machinery
from minigpt_edge.stages.stage import StageSpec, code_files, code_hash, run_stage

pytestmark = pytest.mark.whole

# Every Python process reads this when it starts. A file of ours is noted when its code begins to run,
# which importing it does too, under the names of the stages that are being made: one may need another.
WATCH = """
import os, sys, threading

making, seen, ours = os.environ.get("MAKING", ""), set(), tuple(os.environ["OURS"].split(os.pathsep))

def watch(frame, event, value):
    if event == "call" and making and (making, frame.f_code.co_filename) not in seen:
        seen.add((making, frame.f_code.co_filename))
        if frame.f_code.co_filename.startswith(ours):
            with open(os.environ["RAN"], "a") as log:
                log.write(f"{making}\\t{frame.f_code.co_filename}\\n")

def make(names):
    global making
    making = os.environ["MAKING"] = names
    sys.setprofile(watch if names else None)
    threading.setprofile(watch if names else None)

make(making)
"""

BUILD = """
import json, os, sys, sitecustomize
from minigpt_edge.stages import packages, stage

run_stage, make_once, code = stage.run_stage, packages.make_once, {}

def watch(name, names, make):
    code[name] = list(names)

    def watched(out):
        before = sitecustomize.making
        sitecustomize.make(f"{before} {name}".strip())
        try:
            return make(out)
        finally:
            sitecustomize.make(before)

    return watched

def convert(target, is_whole, make):
    from minigpt_edge.models.base_model import CODE
    return make_once(target, is_whole, watch("model", CODE, make))

stage.run_stage = lambda work, spec, make: run_stage(work, spec, watch(spec.name, spec.code, make))
packages.make_once = convert
from minigpt_edge.cli import cli
cli(sys.argv[2:], standalone_mode=False)

from minigpt_edge.data.stage import corpus_stage
from minigpt_edge.evaluation.stage import dense_stage
from minigpt_edge.models.base_model import resolve_model
from minigpt_edge.pace.stage import choose_calibration, choose_recovery
from minigpt_edge.prune.stage import prune_stage
from minigpt_edge.recipe import recipe_of
from minigpt_edge.stages.console import Log
from minigpt_edge.stages.context import BuildContext
small = {"threads": 1, "min_count": 1, "sparsity": 0.2, "lora_rank": 1}  # LoRA is not compiled
recipe = recipe_of(model="./model", corpus=["corpus"], time="8h", **small)
context = BuildContext(packages.cache_dir() / "work", recipe, resolve_model("./model"), Log(quiet=True))
text = corpus_stage(context, to_train=False)
context, pace = choose_calibration(context, text, dense_stage(context, text))
choose_recovery(context, pace, prune_stage(context, text))
with open(sys.argv[1], "w") as file:
    json.dump(code, file)
"""
OPTIONS = (
    *("--model", "./model", "--corpus", "corpus", "--out", "out", "--threads", "1", "--min-count", "1"),
    *("--calibration-tokens", "2048", "--recover-tokens", "4096", "--sparsity", "0.2"),
    *("--target", "gguf-q4", "--target", "onnx-int4"),
)
STAGES = {
    *(
        "model",
        "corpus",
        "dense",
        "prune",
        "recover",
        "reference",
        "export",
        "export-gguf-q4",
        "export-onnx-int4",
    ),
    *("pace-dense", "pace-recovery"),
    *("measure-gguf-q4", "measure-onnx-int4", "baseline-gguf-f16", "baseline-onnx-int4"),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Stage -> "code", what it names, and "ran", the files of ours that ran while it was made."""
    folder = tmp_path_factory.mktemp("code")
    write_model(folder / "model", write_corpus(folder / "corpus"), blocks=2)
    (folder / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    (folder / "build.py").write_text(BUILD)
    paths = [folder / "watch", *(ROOT / part for part in (".", "export", "runtime"))]
    environment = {
        **os.environ,
        "MINIGPT_EDGE_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OURS": os.pathsep.join(f"{path}/" for path in PACKAGES.values()),
        "RAN": str(folder / "ran.txt"),
    }
    done = subprocess.run(
        [sys.executable, "build.py", "code.json", "build", *OPTIONS],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    named = json.loads((folder / "code.json").read_text())
    made: dict[str, dict[str, Any]] = {name: {"code": code, "ran": set()} for name, code in named.items()}
    for line in (folder / "ran.txt").read_text().splitlines():
        making, _, file = line.partition("\t")
        for name in making.split():
            made[name]["ran"].add(Path(file))
    return made


@functools.cache
def constants(file: Path) -> frozenset[Path]:
    """Our files from which a file takes constants when it is imported: no code of theirs runs later."""
    places = {module_name(path, package): path for package in PACKAGES for path in sources(package)}
    found = [
        str(node.module)
        for node in at_import_time(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and any(alias.name.isupper() for alias in node.names)
    ]
    return frozenset(places[name] for name in found if name in places)


def not_hashed(ran: set[Path], code: Mapping[str, Path]) -> list[str]:
    """Files that decide a stage's result and are not among its code."""
    needed = ran | {other for file in ran for other in constants(file)}
    return sorted(str(path.relative_to(ROOT)) for path in needed - set(code.values()))


def test_the_code_that_makes_a_stage_is_in_its_key(build: dict[str, dict[str, Any]]) -> None:
    assert set(build) > STAGES
    assert all(len(stage["ran"]) > 3 for stage in build.values())
    found = {name: not_hashed(stage["ran"], code_files(stage["code"])) for name, stage in build.items()}
    assert {name: files for name, files in found.items() if files} == {}


def test_code_that_is_not_in_the_key_is_noticed(build: dict[str, dict[str, Any]]) -> None:
    for name, folder, file in (
        ("prune", "minigpt_edge.models", "minigpt_edge/models/forward.py"),
        ("recover", "minigpt_edge.prune", "minigpt_edge/prune/settings.py"),  # it takes a constant from there
        # in a process of its own
        ("measure-gguf-q4", "minigpt_edge_runtime.engines", "runtime/minigpt_edge_runtime/engines/gguf.py"),
    ):
        ran, code = build[name]["ran"], [each for each in build[name]["code"] if each != folder]
        assert len(code) < len(build[name]["code"])
        assert file in not_hashed(ran, code_files(code))


def test_the_server_the_report_and_the_commands_are_in_no_key(build: dict[str, dict[str, Any]]) -> None:
    before = ("model", "corpus", "dense", "pace-dense", "prune", "pace-recovery", "recover")
    for name, stage in build.items():
        away = ["_runtime/serve/", "_runtime/compare/", "minigpt_edge/report/", "/commands/"]
        away += ["minigpt_edge/ship/"] if name in before else []
        assert [file for file in code_files(stage["code"]) if any(part in file for part in away)] == []


def test_every_file_changes_the_key(
    build: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = functools.cache(machinery.sha256_file)
    changed: Path | None = None
    monkeypatch.setattr(machinery, "sha256_file", lambda path: "other" if path == changed else hashes(path))
    for code in {tuple(stage["code"]) for stage in build.values()}:
        changed = None
        files, found = code_files(code), {code_hash(code)}
        for path in files.values():
            changed = path
            found.add(code_hash(code))
        assert len(found) == len(files) + 1


def test_a_changed_byte_makes_the_stage_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pruner"
    (package / "methods").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {"__init__.py": True, "other.py": False, "methods/__init__.py": True, "methods/a.py": True}
    for name in names:
        (package / name).write_text("# 0")

    def key() -> str:
        spec = StageSpec("demo", {}, {}, ("pruner.methods",))
        return run_stage(tmp_path / "work", spec, lambda out: {}).path.name

    before = key()
    for name, decides in names.items():
        (package / name).write_text("# 1")
        assert (key() != before) == decides
        (package / name).write_text("# 0")
    assert key() == before
