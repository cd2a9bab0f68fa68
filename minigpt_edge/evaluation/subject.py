"""What is evaluated: a bundle, a model file or a checkpoint directory, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.stages.device import CPU, computing_on
from minigpt_edge_runtime.bundle.open import open_bundle
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel


@dataclass(frozen=True)
class Subject:
    """A model file with its bundle's facts, or a checkpoint directory.

    Attributes:
        path: the model file, or the checkpoint's directory.
        domain: the bundle's, or the one that is asked for.
        base: the base model whose tokens perplexity counts: as `base_model.resolve_model` takes it.
        made_from: what the bundle says of its base model, where none was given: name, source, sha256.
        source: which of its domain's sources a bundle was made from, None for the default ones.
        corpus: sha256 of the corpus that a bundle was made from.
    """

    path: Path
    domain: str | None
    base: str | None
    document_start: str | None
    made_from: dict[str, Any] | None = None
    source: str | None = None
    corpus: str | None = None

    @contextmanager
    def open(self, threads: int, device: str = CPU) -> Iterator[Engine]:
        """The engine, ready to score; that of a checkpoint computes on a device that `resolve` gave."""
        if self.path.is_dir():
            from minigpt_edge.evaluation.torch_engine import TorchEngine

            with computing_on(device), TorchEngine(self.path, threads=threads) as engine:
                yield engine  # type: ignore[misc]
        else:
            with open_engine(self.path, None, threads, logits_all=True) as engine:
                yield engine

    def base_model(self, *, offline: bool) -> BaseModel:
        """The base model that was given, or else the bundle's; the default one for a file that names none.

        Raises:
            UsageError: the bundle's can't be found from what the bundle says of it.
        """
        from minigpt_edge.models import base_model

        if not self.made_from:
            return base_model.resolve_model(self.base, offline=offline)
        name, source = (str(self.made_from.get(key)) for key in ("name", "source"))
        short = [key for key, entry in base_model.known_models().items() if entry["title"] == name]
        for wanted in (*short, source, name):
            with suppress(EdgeError):  # a bundle is no reason to fetch anything but a model with a short name
                found = base_model.resolve_model(wanted, offline=offline or wanted not in short)
                if found.fingerprint == self.made_from.get("sha256"):
                    return found
        raise UsageError(
            f"the bundle was made from {name} ({source}), which is not found, and perplexity counts its "
            "tokens",
            "give that model with --base-model",
        )


def subject_of(
    path: Path,
    file: str | None = None,
    domain: str | None = None,
    base_model: str | None = None,
    *,
    check: bool = True,
) -> Subject:
    """A bundle (directory or zip), a model file, or a checkpoint directory.

    Raises:
        EdgeError: it is none of these, or unless it is not to `check`, a bundle's file was changed.
    """
    if (path / "config.json").is_file():
        return Subject(path, domain, base_model, None)
    bundle = open_bundle(path, file, check=check)
    manifest = bundle.manifest
    corpus = {} if domain else {"source": manifest.get("source"), "corpus": manifest.get("corpus_sha256")}
    return Subject(
        bundle.model_path,
        domain or manifest.get("domain"),
        base_model,
        bundle.document_start,
        made_from=None if base_model else manifest.get("base_model"),
        **corpus,
    )
