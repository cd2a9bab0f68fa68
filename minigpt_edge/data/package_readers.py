"""Text inside published packages: one reader for each form, named by the domain files.

A reader takes the files of a source, sorted, and the source's options; it gives one document at a time.
"""

from __future__ import annotations

import gzip
import html
import json
import lzma
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from minigpt_edge.data.decoding import decoded
from minigpt_edge.data.pairs import pair_document
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_text

_AGAIN = "remove the cached package so that it is fetched again"
_BLANK = re.compile(r"[ \t]+")
MIN_WORDS = 4  # of the English side of a pair: less is a label, not a sentence

Options = Mapping[str, str]
Reader = Callable[[Sequence[Path], Options], Iterator[str]]


def read_package(name: str, files: Sequence[Path], options: Options) -> list[str]:
    """The documents of a package's files.

    Raises:
        EdgeError: a file is damaged.
    """
    try:
        return list(READERS[name](files, options))
    except (OSError, EOFError, lzma.LZMAError, ElementTree.ParseError) as error:
        raise EdgeError(f"{files[0].parent} holds a damaged file ({error})", _AGAIN) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EdgeError(
            f"{files[0].parent} is not what the {name} reader knows ({error!r})", _AGAIN
        ) from error


def check_options(reader: str, options: Options) -> None:
    """EdgeError unless there is the reader, it knows these options, and they are what it takes."""
    if reader not in READERS:
        raise EdgeError(f"there is no reader {reader!r}", f"known: {', '.join(READERS)}")
    known = OPTIONS.get(reader, ())
    for name, value in options.items():
        if name not in known:
            raise EdgeError(
                f"the {reader} reader has no option {name!r}", f"it has: {', '.join(known) or 'none'}"
            )
        try:
            if name == "share":
                float(value)
            elif name in ("include", "exclude"):
                re.compile(value)
        except (ValueError, re.error) as error:
            raise EdgeError(
                f"option {name} is wrong: {error}", "docs/domains.md says what it takes"
            ) from error


def read_licences(files: Sequence[Path], _: Options) -> Iterator[str]:
    """Texts of ScanCode's licence files: YAML front matter, then a text. Only English ones."""
    import yaml

    for path in files:
        text = decoded(path)
        match = re.match(r"---\n(.*?)\n---\n?(.*)", text, re.DOTALL)
        if match is None:
            raise EdgeError(f"{path} has no front matter", _AGAIN)
        try:
            about = yaml.load(match[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise EdgeError(f"{path}: damaged front matter ({error})", _AGAIN) from error
        if about.get("language", "en") == "en":
            yield match[2]


def read_medline(files: Sequence[Path], _: Options) -> Iterator[str]:
    """Abstracts of MEDLINE files without a publisher's copyright mark."""
    for path in files:
        with gzip.open(path) as packed:
            for _event, element in ElementTree.iterparse(packed):
                if element.tag != "Abstract":
                    continue
                if element.find("CopyrightInformation") is None:
                    parts = ["".join(part.itertext()) for part in element.iter("AbstractText")]
                    yield " ".join(parts)
                element.clear()


def read_wikipedia(files: Sequence[Path], options: Options) -> Iterator[str]:
    """Articles of a MediaWiki export without markup.

    Options: include and exclude are regular expressions on category names, of which one must match the first
    and not the second; share is a fraction of the articles, drawn by their titles.
    """
    import mwparserfromhell

    include = re.compile(options.get("include", "."), re.IGNORECASE)
    exclude = re.compile(options.get("exclude", r"(?!)"), re.IGNORECASE)
    share = float(options.get("share", "1"))
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            export = file.read()
        for page in re.finditer(
            r"<page>\s*<title>([^<]*)</title>.*?<text[^>]*>(.*?)</text>", export, re.DOTALL
        ):
            title, markup = page[1], html.unescape(page[2])
            if re.match(r"\w+:\S", title) or markup[:12].lower().startswith("#redirect"):
                continue
            fraction = int(sha256_text(title)[:8], 16) / 2**32
            names = re.findall(r"\[\[category:([^\]|]+)", markup, re.IGNORECASE)
            if fraction < share and any(include.search(n) and not exclude.search(n) for n in names):
                yield _plain(mwparserfromhell.parse(markup).strip_code())


def _plain(text: str) -> str:
    """Prose without the remains of tables, lists of links and headings."""
    lines = (_BLANK.sub(" ", line).strip() for line in text.split("\n"))
    kept = [
        line
        for line in lines
        if len(line) > 60 and not re.match(r"[|!{}]|(category|image|file|[a-z-]{2,12}):", line, re.I)
    ]
    return "\n\n".join(kept)


def read_definitions(files: Sequence[Path], options: Options) -> Iterator[str]:
    """Running text inside JSON (also .xz), wherever it is under the given key.

    Options: key, and seen, "half" to skip texts of which less than half the words are in new sentences:
    definitions of statistical series repeat each other.
    """
    for path in files:
        with (
            lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else open(path, encoding="utf-8")
        ) as file:
            content = json.load(file)
        texts = dict.fromkeys(_unmarked(text) for text in _strings(content, options.get("key", ""), False))
        yield from _new(texts) if options.get("seen") == "half" else texts


def _strings(node: Any, key: str, inside: bool) -> Iterator[str]:
    """All strings under dictionary entries of that name, at any depth."""
    if isinstance(node, str):
        if inside:
            yield node
    elif isinstance(node, list):
        for part in node:
            yield from _strings(part, key, inside)
    elif isinstance(node, dict):
        for name, part in node.items():
            yield from _strings(part, key, inside or name == key)


def _unmarked(text: str) -> str:
    """Text without HTML."""
    text = re.sub(r"<br ?/?>|</(p|li|h\d|div)>", "\n", text, flags=re.IGNORECASE)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return "\n".join(line for raw in text.split("\n") if (line := _BLANK.sub(" ", raw).strip()))


def _new(texts: Mapping[str, None]) -> Iterator[str]:
    seen: set[str] = set()
    for text in texts:
        sentences = re.split(r"(?<=[.;:?!])\s+", text)
        fresh = [sentence for sentence in sentences if sentence not in seen]
        if 2 * sum(len(sentence) for sentence in fresh) >= len(text):
            seen.update(sentences)
            yield text


def read_rulebook(files: Sequence[Path], _: Options) -> Iterator[str]:
    """Descriptions of a role-playing game's system reference, one document per file: name, then prose."""
    for path in files:
        content = json.loads(decoded(path))
        records = content.get("data", [content])
        for record in records:
            parts = dict.fromkeys(_strings(record, "description", False))
            prose = [text for part in parts if len(text := _without_macros(part)) > 40]
            if prose:
                yield "\n\n".join([str(record.get("name", "")), *prose]).strip()


def _without_macros(text: str) -> str:
    """Prose without a virtual table's commands: [[/damage 2d6]], @UUID[…]{name}, &Reference[…]."""
    text = re.sub(r"\[\[[^\]]*\]\](\{([^}]*)\})?", lambda found: found[2] or "", html.unescape(text))
    text = re.sub(r"[@&]\w+\[([^\]|]*)[^\]]*\](\{([^}]*)\})?", lambda found: found[3] or found[1], text)
    return re.sub(r" {2,}", " ", _unmarked(text))


def read_translations(files: Sequence[Path], _: Options) -> Iterator[str]:
    """Pairs of English and Chinese sentences from JSON catalogues en.json and zh-Hant.json side by side.

    A document holds the pairs of one folder. Sentences with placeholders and labels of fewer than four words
    are left out.
    """
    for path in sorted(path for path in files if path.name == "en.json"):
        other = path.with_name("zh-Hant.json")
        if not other.exists():
            continue
        sources, targets = (_flat(json.loads(decoded(each))) for each in (path, other))
        pairs = [(source, targets.get(key, "")) for key, source in sources.items()]
        if document := pair_document(pair for pair in pairs if _is_sentence(*pair)):
            yield document


def _is_sentence(source: str, target: str) -> bool:
    plain = target != source and not re.search(r"[{}\[\]<>]|https?:", source + target)
    return plain and len(source.split()) >= MIN_WORDS


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, part in node.items():
        if isinstance(part, dict):
            found |= _flat(part, f"{prefix}{name}.")
        elif isinstance(part, str):
            found[prefix + name] = part
    return found


READERS: dict[str, Reader] = {
    "licence": read_licences,
    "medline": read_medline,
    "wikipedia": read_wikipedia,
    "definitions": read_definitions,
    "rulebook": read_rulebook,
    "translations": read_translations,
}
OPTIONS = {
    "wikipedia": ("include", "exclude", "share"),
    "definitions": ("key", "seen"),
}  # The options that a reader knows; the others know none.
