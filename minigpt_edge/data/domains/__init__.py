"""Domains: one TOML file each, naming where the domain's text comes from and under which licence.

Beside the files here there may be the user's own (`add_domain`), and those of installed packages: an entry
point of the group "minigpt_edge.domains" names a package, in which lies a file with the entry point's name.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from minigpt_edge.data.package_readers import READERS, check_options
from minigpt_edge.data.sources import FileSource, HubSource, PackageSource, Source
from minigpt_edge.data.tasks import get_task
from minigpt_edge.stages.packages import cache_dir
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.files import understanding, write_text

ENTRY_POINTS = "minigpt_edge.domains"
TEXT, TRANSLATION = "text", "translation"
_KINDS: dict[str, type[Source]] = {"package": PackageSource, "hub": HubSource, "files": FileSource}
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+")
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_KEYS = ("title", "default", "words", "language", "task", "questions", "sources")


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
    default: tuple[str, ...]
    sources: dict[str, Source]
    questions: tuple[str, ...] = ()
    task: str = TEXT
    language: str = "en"
    words: int | None = None

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
    with understanding(where, _HELP):
        return _domain(name, data, where)


def _domain(name: str, data: dict[str, Any], where: str) -> Domain:
    for key, kind in (("title", str), ("default", (str, list)), ("sources", dict)):
        if not isinstance(data.get(key), kind):
            raise EdgeError(f"{where} has no {key}" if key not in data else f"{where}: {key} is wrong", _HELP)
    sources = {key: _source(key, entry, where) for key, entry in data["sources"].items()}
    default = (data["default"],) if isinstance(data["default"], str) else tuple(data["default"])
    if not default or any(each not in sources for each in default):
        raise EdgeError(
            f"{where}: default names a source that is not there", f"there are: {', '.join(sources)}"
        )
    if data.get("task", TEXT) not in (TEXT, TRANSLATION):
        raise EdgeError(f"{where}: there is no task {data['task']!r}", f"known: {TEXT}, {TRANSLATION}")
    questions = data.get("questions", [])
    if not isinstance(questions, list) or not all(isinstance(each, str) for each in questions):
        raise EdgeError(f"{where}: questions is not a list of names", "see `minigpt-edge tasks`")
    with _in_file(where):
        for each in questions:
            get_task(each)
    if unknown := sorted(data.keys() - _KEYS):
        raise EdgeError(f"{where} has an unknown key {unknown[0]!r}", f"known: {', '.join(_KEYS)}")
    if "words" in data and not isinstance(data["words"], int):
        raise EdgeError(f"{where}: words is not a number", _HELP)
    language = str(data.get("language", "zh" if data.get("task") == TRANSLATION else "en"))
    if data.get("task") == TRANSLATION and language != "zh":
        raise EdgeError(
            f"{where}: the task translation is from English to Traditional Chinese, not to {language}",
            "leave task out: pairs in other languages can be trained on as text",
        )
    return Domain(
        name,
        str(data["title"]),
        default,
        sources,
        tuple(questions),
        data.get("task", TEXT),
        language,
        data.get("words"),
    )


def _right(name: str, value: Any) -> bool:
    """Whether a key of a source has a value of the right kind."""
    if name == "options":
        return isinstance(value, dict)
    if name in ("members", "pair_columns") and isinstance(value, list):
        count = len(value) == 2 if name == "pair_columns" else bool(value)
        return count and all(isinstance(each, str) for each in value)
    if name == "package":
        return isinstance(value, str) and bool(_PINNED.fullmatch(value))
    return isinstance(value, str) and name != "pair_columns"


_HELP = "docs/domains.md shows a whole domain file"


@contextmanager
def _in_file(where: str) -> Iterator[None]:
    """Say in which file it is that something is wrong."""
    try:
        yield
    except EdgeError as error:
        raise EdgeError(f"{where}: {error.message}", error.hint) from error


def _source(key: str, entry: Any, where: str) -> Source:
    if not isinstance(entry, dict) or entry.get("kind") not in _KINDS:
        raise EdgeError(
            f"{where}: source {key} has no kind, or an unknown one", f"known kinds: {', '.join(_KINDS)}"
        )
    kind = _KINDS[entry["kind"]]
    given = {name: value for name, value in entry.items() if name != "kind"}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(given.keys() - fields):
        raise EdgeError(
            f"{where}: source {key} has an unknown key {unknown[0]!r}", f"known: {', '.join(fields)}"
        )
    for name, value in given.items():
        if not _right(name, value):
            raise EdgeError(f"{where}: source {key} has a wrong value for {name!r}", _HELP)
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in given]:
        raise EdgeError(f"{where}: source {key} lacks {missing[0]!r}", _HELP)
    if kind is PackageSource:
        members = given["members"]
        given["members"] = (members,) if isinstance(members, str) else tuple(members)
        given["options"] = tuple(sorted((k, str(v)) for k, v in given.get("options", {}).items()))
        if given["reader"] not in READERS:
            raise EdgeError(
                f"{where}: source {key} has an unknown reader {given['reader']!r}",
                f"known: {', '.join(READERS)}",
            )
        with _in_file(f"{where}: source {key}"):
            check_options(given["reader"], dict(given["options"]))
    if "pair_columns" in given:
        given["pair_columns"] = tuple(given["pair_columns"])
    return kind(**given)
