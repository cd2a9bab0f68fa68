"""Domains: one TOML file each, naming where the domain's text comes from and under which licence.

Beside the files here there may be the user's own (`add_domain`), and those of installed packages: an entry
point of the group "minigpt_edge.domains" names a package, in which lies a file with the entry point's name.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from minigpt_edge.data.sources import Source
from minigpt_edge.data.tasks import get_task
from minigpt_edge.stages.checked import Count, Names, checked
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import write_text

ENTRY_POINTS = "minigpt_edge.domains"
TEXT: Literal["text"] = "text"
TRANSLATION: Literal["translation"] = "translation"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_HELP = "docs/domains.md shows a whole domain file"


@dataclass(frozen=True)
class Domain:
    """A domain and its sources.

    Attributes:
        default: the sources that are read where none is chosen.
        words: in the documents of the default sources that are kept; None where nobody has counted.
        questions: names of question sets about it, see `tasks`.
        task: "text", or "translation" of pairs of sentences.
        language: of its text, as ISO 639 writes it.
    """

    name: str
    title: str
    default: Names
    sources: dict[str, Source]
    questions: tuple[str, ...] = ()
    task: Literal["text", "translation"] = TEXT
    language: str = "en"
    words: Count | None = None
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if missing := [each for each in self.default if each not in self.sources]:
            raise EdgeError(
                f"default names a source that is not there: {missing[0]!r}",
                f"there are: {', '.join(self.sources)}",
            )
        for question_set in self.questions:
            get_task(question_set)
        if self.task == TRANSLATION and self.language != "zh":
            raise EdgeError(
                f"the task translation is from English to Traditional Chinese, not to {self.language}",
                "leave task out: pairs in other languages can be trained on as text",
            )

    def chosen(self, name: str | None = None) -> list[Source]:
        """The source of that name, or the default ones; UsageError if there is none such."""
        if name and name not in self.sources:
            raise UsageError(
                f"domain {self.name} has no source {name!r}", f"sources: {', '.join(self.sources)}"
            )
        return [self.sources[each] for each in ([name] if name else self.default)]


def own_domains() -> Path:
    """The folder of the user's own domain files."""
    return cache_dir() / "domains"


def _files() -> dict[str, Any]:
    """Domain name -> its file; the user's own come before those of packages, and these before ours."""
    ours = {f.name: f for f in resources.files(__name__).iterdir() if f.name.endswith(".toml")}
    packages = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        packages[f"{point.name}.toml"] = resources.files(point.value) / f"{point.name}.toml"
    folder = own_domains()
    own = {path.name: path for path in sorted(folder.glob("*.toml"))} if folder.is_dir() else {}
    return {name.removesuffix(".toml"): file for name, file in {**ours, **packages, **own}.items()}


def list_domains() -> list[str]:
    """The names of the known domains, sorted."""
    return sorted(_files())


def load_domain(name: str) -> Domain:
    """A domain by name.

    Raises:
        UsageError: there is none such; lists the known ones.
        EdgeError: its file is damaged.
    """
    files = _files()
    if name not in files:
        raise UsageError(
            f"there is no domain {name!r}", f"known domains: {', '.join(sorted(files))}; or give --corpus"
        )
    return parse_domain(name, files[name].read_text(encoding="utf-8"), str(files[name]))


def add_domain(path: Path) -> Domain:
    """Check a domain file and keep a copy, under the name of the file.

    Raises:
        EdgeError: it can't be read or is no domain file.
    """
    name = path.stem
    if path.suffix != ".toml" or not _NAME.fullmatch(name):
        raise EdgeError(
            f"{path} is not named like a domain", "call it NAME.toml, NAME in lower case without spaces"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeError(f"{path} can't be read ({error})", "give a TOML file in UTF-8") from error
    domain = parse_domain(name, text, str(path))
    own_domains().mkdir(parents=True, exist_ok=True)
    write_text(own_domains() / path.name, text)
    return domain


def parse_domain(name: str, text: str, where: str) -> Domain:
    """The domain that a TOML text describes; EdgeError that says what is wrong in `where`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EdgeError(f"{where} is not TOML: {error}", _HELP) from error
    language = "zh" if data.get("task") == TRANSLATION else "en"
    return checked(Domain, {"language": language, **data, "name": name}, where, _HELP)
