"""The directory that ships: one or more model files, and a manifest that lists every file with its sha256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from minigpt_edge_runtime.bundle.manifest import MANIFEST, ONNX_MODEL, read_manifest, verify_checksums
from minigpt_edge_runtime.errors import EdgeError


@dataclass(frozen=True)
class Bundle:
    """A model file and what is known about it; a bare model file has an empty manifest."""

    model_path: Path
    manifest: dict[str, Any]
    directory: Path  # the bundle's; of a bare file the one it lies in

    @property
    def document_start(self) -> str | None:
        """The text of the token that begins every document, if the bundle says so."""
        return self.manifest.get("document_start")


def read_bundle(path: Path | str, file: str | None = None) -> Bundle:
    """A bundle directory or zip file, or a bare model.

    Args:
        path: the bundle's directory, a zip file of it, a .gguf file, a .onnx file, or the directory of a
            model.onnx.
        file: which of the bundle's model files ("onnx-int4" will do for "onnx-int4/model.onnx"); by default
            its first.

    Raises:
        EdgeError: it is none of these, or the manifest's model file is missing.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        from minigpt_edge_runtime.bundle.unpack import unpack

        path = unpack(path)
    if (path / ONNX_MODEL).is_file() and not (path / MANIFEST).is_file():
        path = path / ONNX_MODEL
    if path.is_file():
        if file is not None:
            raise EdgeError(
                f"{path} is one model file, {file!r} can't be chosen from it", "give the bundle's directory"
            )
        return Bundle(path, {}, path.parent)
    manifest = read_manifest(path)
    name = file or manifest["model_file"]
    if f"{name}/{ONNX_MODEL}" in manifest["model_files"]:
        name = f"{name}/{ONNX_MODEL}"
    if name not in manifest["model_files"]:
        known = ", ".join(manifest["model_files"])
        raise EdgeError(f"{path} has no model file {name!r}", f"choose one of: {known}")
    if not (path / name).is_file():
        raise EdgeError(f"{path / name} is missing from the bundle", "copy or build the bundle again")
    return Bundle(path / name, manifest, path)


def open_bundle(path: Path | str, file: str | None = None, *, check: bool = True) -> Bundle:
    """`read_bundle`, and unless it is a bare model file or not to `check`, the checksums of what is used.

    Raises:
        EdgeError: as `read_bundle`, or a file is missing or was changed.
    """
    bundle = read_bundle(path, file)
    if check and bundle.manifest:
        used = bundle.model_path.relative_to(bundle.directory).parts[0]
        others = {PurePosixPath(name).parts[0] for name in bundle.manifest["model_files"]} - {used}
        if problems := verify_checksums(bundle.directory, others):
            hint = "copy the bundle again, or give its model file alone, which is not checked"
            raise EdgeError(f"{bundle.directory}: {problems[0]}", hint)
    return bundle
