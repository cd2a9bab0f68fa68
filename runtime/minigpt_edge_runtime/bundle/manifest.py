"""A bundle's manifest.json: the kind of each file, and its sha256."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, sha256_file, write_json

MANIFEST = "manifest.json"
ONNX_MODEL = "model.onnx"
KIND = "minigpt-edge bundle"
FORMAT = 1
_FIELDS: dict[str, Any] = {
    "name": str,
    "model_file": str,
    "model_files": list,
    "document_start": str | None,
    "domain": str | None,
    "corpus_sha256": str | None,
    "base_model": dict,
    "licences": list,
    "targets": list,
    "checks": dict,
    "files": dict,
}


@dataclass(frozen=True)
class Contents:
    """What a bundle's manifest says beside the files.

    Attributes:
        model_files: file names inside the directory; the first is what `run` uses.
        base_model: what the model was made from, e.g. {"name", "source", "licence", "sha256"}.
        licences: licence names or records of the model and the texts.
        document_start: the text of the token that begins every document.
        checks: model file -> what `verify.make_check` returned for it, for `verify` to compute again.
        extra: further facts, kept under their own keys.
    """

    name: str
    model_files: Sequence[str]
    base_model: Mapping[str, Any]
    licences: Sequence[Any]
    domain: str | None
    corpus_sha256: str | None
    targets: Sequence[str]
    document_start: str | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(directory: Path, contents: Contents) -> dict[str, Any]:
    """Write manifest.json over everything that is in `directory` now, and return it.

    Raises:
        EdgeError: a model file is missing.
    """
    if not contents.model_files:
        raise EdgeError(f"{directory} has no model file to list", "export a model first")
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }
    for wanted in [*contents.model_files, *contents.checks]:
        if wanted not in files:
            raise EdgeError(f"{directory / wanted} does not exist", "export the model again")
    manifest = {
        **contents.extra,
        "kind": KIND,
        "format": FORMAT,
        "minigpt_edge": __version__,
        "name": contents.name,
        "model_file": contents.model_files[0],
        "model_files": list(contents.model_files),
        "base_model": dict(contents.base_model),
        "licences": list(contents.licences),
        "domain": contents.domain,
        "corpus_sha256": contents.corpus_sha256,
        "targets": list(contents.targets),
        "document_start": contents.document_start,
        "checks": dict(contents.checks),
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        EdgeError: there is none, it is damaged, not a bundle's, of another format, or names files outside.
    """
    if not directory.is_dir():
        raise EdgeError(f"{directory} does not exist", "check the path")
    if not (directory / MANIFEST).is_file():
        if any(directory.glob("*.safetensors")):
            hint = "make a bundle of it: minigpt-edge build --model DIRECTORY"
            raise EdgeError(f"{directory} is a checkpoint, not a bundle", hint)
        raise EdgeError(
            f"{directory} is not a minigpt-edge bundle (it has no {MANIFEST})",
            "give a bundle, a .gguf file or a .onnx file",
        )
    manifest = read_json(directory / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise EdgeError(f"{directory / MANIFEST} is not a bundle's manifest", "give a bundle or a .gguf file")
    if manifest.get("format") != FORMAT:
        hint = "install the version of minigpt-edge that made it, or a newer one"
        raise EdgeError(f"{directory} has bundle format {manifest.get('format')}, known is {FORMAT}", hint)
    if not _sound(manifest):
        raise EdgeError(f"{directory / MANIFEST} is damaged", "copy or build the bundle again")
    return manifest


def _sound(manifest: Mapping[str, Any]) -> bool:
    """Whether its records are complete, and its names are of files inside the directory."""
    if not all(isinstance(manifest.get(name), kind) for name, kind in _FIELDS.items()):
        return False
    files = manifest["files"]
    names = [*files, *manifest["checks"], *manifest["model_files"], manifest["model_file"]]
    return (
        all(isinstance(name, str) and inside(name) and name in files for name in names)
        and all(isinstance(record, dict) for record in [*files.values(), *manifest["checks"].values()])
        and all(isinstance(record.get("bytes"), int) for record in files.values())
    )


def verify_checksums(directory: Path, skip: Collection[str] = ()) -> list[str]:
    """What is wrong with the files that the manifest lists; empty if nothing is.

    Args:
        skip: files and folders at its top that are not looked at.

    Raises:
        EdgeError: the directory is not a bundle.
    """
    problems = []
    for name, record in read_manifest(directory)["files"].items():
        if PurePosixPath(name).parts[0] in skip:
            continue
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != record.get("bytes"):
            problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {record.get('bytes', 0):,}")
        elif sha256_file(path) != record.get("sha256"):
            problems.append(f"{name} has been changed (its sha256 differs)")
    return problems


def owned_files(directory: Path) -> list[Path]:
    """The files that may be overwritten in a bundle: those its manifest lists, and the manifest.

    Raises:
        EdgeError: the directory is not a bundle.
    """
    return [directory / name for name in read_manifest(directory)["files"]] + [directory / MANIFEST]


def inside(name: str) -> bool:
    """Whether a file name of a manifest or zip stays in the directory on every system."""
    path = PurePosixPath(name)
    return (
        bool(name)
        and not path.is_absolute()
        and ".." not in path.parts
        and not (set(name) & {"\\", ":", os.sep} - {"/"})
    )
