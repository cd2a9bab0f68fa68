"""The corpus: a domain's or the user's documents, cleaned, without near-duplicates, split by content."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.decoding import storable
from minigpt_edge.data.documents import MIN_CHARACTERS, SIZES, divide
from minigpt_edge.data.near_duplicates import NearDuplicates
from minigpt_edge.data.pairs import distinct_pairs
from minigpt_edge.data.reading import read_lines
from minigpt_edge.data.sources import Source
from minigpt_edge.data.windows import MAX_TOKENS, MIN_WINDOWS, choose_windows, write_texts
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, sha256_file, sha256_text, write_json, write_text
from minigpt_edge_runtime.scoring.held_out import Window

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LANGUAGE_SAMPLE, LANGUAGE_CHARACTERS = 50, 2000
SIMILARITY, PHRASE = 0.5, 5  # of texts that count as one, by their runs of so many words
SPLITS = {"train": 0.8, "validation": 0.9, "test": 1.0}  # upper ends of the hash fractions
ENOUGH_TOKENS = {"validation": 24_000, "test": 28_000}  # of a split's windows: no more are added then


@dataclass(frozen=True)
class SourceTexts:
    """What the sources of a corpus hold.

    Attributes:
        pinned: documents that stay as they are.
        whole: texts of which the long ones are to be divided.
        sources: how corpus.json names each source, and what was read from it.
        are_pairs: whether all are pairs of a sentence and its translation.
    """

    pinned: list[str]
    whole: list[str]
    sources: list[dict[str, Any]]
    are_pairs: bool


def read_sources(
    sources: Sequence[Source], *, offline: bool = False, tell: Callable[[str], None] = lambda line: None
) -> SourceTexts:
    """The texts of sources; `tell` gets a line for each kind of file that was read.

    Raises:
        EdgeError: one can't be read.
    """
    read = SourceTexts([], [], [], all(source.holds_pairs for source in sources))
    for source in sources:
        reading = source.read(offline=offline)
        (read.whole if reading.divisible else read.pinned).extend(reading.texts)
        about = json.dumps({**source.about(), **reading.told}, ensure_ascii=False)
        read.sources.append(json.loads(storable(about)))
        for line in read_lines(read.sources[-1:]):
            tell(line)
    return read


@dataclass(frozen=True)
class _Division:
    """Documents and their splits, with long texts divided into parts of one size."""

    about: dict[str, Any]
    kept: list[dict[str, str]]
    splits: dict[str, list[dict[str, str]]]
    windows: dict[str, list[Window]]

    def lacking(self) -> str | None:
        """The first split with too few windows."""
        return next((name for name, chosen in self.windows.items() if len(chosen) < MIN_WINDOWS), None)


def _with_pieces(read: SourceTexts, pieces: list[str], tokenizer: Tokenizer, window_tokens: int) -> _Division:
    """The corpus of sources whose texts are divided into these pieces."""
    texts = read.pinned + pieces
    about: dict[str, Any] = {}
    if len(pieces) > len(read.whole):
        about["divided"] = [len(read.whole), len(pieces)]
    if read.are_pairs:
        texts, about["pairs"] = distinct_pairs(texts)
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    kept, dropped = clean(texts, specials)
    splits = split_documents(kept)
    about |= {"sources": read.sources, "documents_read": len(texts), "dropped": dropped}
    about["splits"] = {name: _counts(documents, tokenizer) for name, documents in splits.items()}
    windows = {
        name: choose_windows(splits[name], tokenizer, budget, window_tokens)
        for name, budget in ENOUGH_TOKENS.items()
    }
    return _Division(about, kept, splits, windows)


def build_corpus(
    read: SourceTexts,
    out_dir: Path,
    *,
    base_tokenizer_path: Path,
    document_start: str,
    window_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Clean, deduplicate and split text, and write the corpus stage directory.

    Writes {train,validation,test}.jsonl ({"text", "id"} per line), {validation,test}.texts.json (evaluation
    windows) and corpus.json. Long texts are divided, into smaller parts if a split would else have too few
    windows. The same texts give the same bytes, in whatever order and files they come; short rows alone are
    gathered in their order.

    Args:
        read: what the sources hold.
        out_dir: an existing or new folder.
        base_tokenizer_path: tokenizer.json of the base model; its tokens are the unit of all counts.
        document_start: the token that texts are scored from (`minigpt_edge.document_start` in config.json).
        window_tokens: base tokens that a window has at most.

    Returns:
        What corpus.json holds.

    Raises:
        EdgeError: there is too little text; says what was dropped.
    """
    tokenizer = open_tokenizer(base_tokenizer_path)
    pieces: list[str] = []
    for sizes in SIZES:
        smaller = [piece for text in read.whole for piece in divide(text, *sizes)]
        if len(smaller) > len(pieces) or sizes == SIZES[0]:
            pieces = smaller
            made = _with_pieces(read, pieces, tokenizer, window_tokens)
        if not made.lacking():
            break
    if name := made.lacking():
        have = f"{len(made.windows[name])} pieces of text for {name}"
        hint = f"add text: about {20 * MIN_WINDOWS // 2} different documents of a page or more are enough"
        raise _too_small(have, MIN_WINDOWS, made.about, hint)
    info = {
        **made.about,
        "split_rule": "sha256 of the text as a fraction: < 0.8 train, < 0.9 validation, else test",
        "base_tokenizer_sha256": sha256_file(base_tokenizer_path),
        "windows": {
            name: {"windows": len(chosen), "base_tokens": sum(window.base_tokens for window in chosen)}
            for name, chosen in made.windows.items()
        },
        "languages": languages([document["text"] for document in made.kept]),
        "sha256": sha256_text("\n".join(document["id"] for document in made.kept)),
    }
    for name, documents in made.splits.items():
        write_documents(out_dir / f"{name}.jsonl", documents)
    for name, chosen in made.windows.items():
        write_texts(out_dir / f"{name}.texts.json", document_start, name, chosen)
    write_json(out_dir / "corpus.json", info)
    return info


def clean(texts: Iterable[str], specials: Sequence[str]) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Documents worth learning from, ordered by id, and how many were dropped for which reason.

    Blank space at the ends is removed; a special token spelled out in a text gets a space after its first
    character, so that no tokenizer takes it for the token itself. Texts under 200 characters, repeated texts,
    and texts that share about half of their word 5-grams with one already kept (MinHash, 128 permutations)
    are dropped.

    Returns:
        [{"text", "id": hex sha256 of the text}] and {"short", "identical", "near_duplicate",
        "neutralised_tokens"}.
    """
    dropped = {"short": 0, "identical": 0, "near_duplicate": 0, "neutralised_tokens": 0}
    by_id: dict[str, str] = {}
    for raw in texts:
        text, count = neutralise(storable(raw).replace("\r\n", "\n").replace("\0", "").strip(), specials)
        dropped["neutralised_tokens"] += count
        if len(text) < MIN_CHARACTERS:
            dropped["short"] += 1
            continue
        identity = sha256_text(text)
        dropped["identical"] += identity in by_id
        by_id[identity] = text
    kept = []
    different = NearDuplicates(SIMILARITY)
    for identity, text in sorted(by_id.items()):
        if different.add(_phrases(text)):
            kept.append({"text": text, "id": identity})
        else:
            dropped["near_duplicate"] += 1
    return kept, dropped


def neutralise(text: str, specials: Sequence[str]) -> tuple[str, int]:
    """The text with "<|end|>" as "< |end|>" for every special token, and how many there were."""
    count = 0
    for special in specials:
        if len(special) > 1 and (found := text.count(special)):
            text = text.replace(special, f"{special[0]} {special[1:]}")
            count += found
    return text, count


def _phrases(text: str) -> set[str]:
    """A text's runs of five words, or all of its words where they are fewer."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + PHRASE]) for i in range(max(1, len(words) - PHRASE + 1))}


def languages(texts: Sequence[str]) -> dict[str, float]:
    """ISO 639 code -> share of the documents that look like it, of a sample spread over all, by py3langid."""
    from py3langid import classify

    sample = texts[:: max(1, len(texts) // LANGUAGE_SAMPLE)]
    counts = Counter(classify(text[:LANGUAGE_CHARACTERS])[0] for text in sample)
    return {code: round(count / len(sample), 3) for code, count in counts.most_common()}


def split_documents(documents: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Whole documents into train, validation and test (80/10/10) by their ids, so that none ever moves."""
    splits: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS}
    for document in documents:
        fraction = int(document["id"][:16], 16) / 2**64
        splits[next(name for name, end in SPLITS.items() if fraction < end or end == 1.0)].append(document)
    return splits


def _counts(documents: list[dict[str, str]], tokenizer: Tokenizer) -> dict[str, int]:
    texts = [document["text"] for document in documents]
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return {
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "base_tokens": sum(len(encoding.ids) for encoding in encoded),
    }


def check_enough(info: Mapping[str, Any], needed: int) -> None:
    """EdgeError if the training split has fewer than `needed` base tokens.

    Args:
        info: corpus.json.
    """
    have = info["splits"]["train"]["base_tokens"]
    if have < needed:
        hint = "add text, or calibrate on fewer tokens (--calibration-tokens)"
        raise _too_small(f"{have:,} tokens for training", needed, info, hint)


def _too_small(have: str, needed: int, info: Mapping[str, Any], hint: str) -> EdgeError:
    documents, size = (sum(split[key] for split in info["splits"].values()) for key in ("documents", "bytes"))
    there = f"{documents:,} different documents with {size:,} bytes"
    lost = _dropped(info["dropped"])
    read = f" of {info['documents_read']:,} that were read; dropped: {lost}" if lost else ""
    return EdgeError(f"the corpus is too small: {have}, {needed:,} are needed ({there}{read})", hint)


def made_lines(info: Mapping[str, Any]) -> list[str]:
    """What a user is told of how documents were made of the texts in corpus.json, and what was dropped."""
    lines = []
    if "divided" in info:
        whole, pieces = info["divided"]
        lines.append(f"long texts are divided: {pieces:,} documents from {whole:,} text{'s' * (whole > 1)}")
    lost = _dropped(info["dropped"])
    return [*lines, f"dropped: {lost}"] if lost else lines


def _dropped(dropped: Mapping[str, int]) -> str:
    """How many documents were dropped for which reason; empty if none were."""
    reasons = {
        "short": f"under {MIN_CHARACTERS} characters",
        "identical": "the same as another",
        "near_duplicate": "nearly the same as another",
    }
    return ", ".join(f"{dropped[why]:,} {what}" for why, what in reasons.items() if dropped.get(why))


def write_documents(path: Path, documents: Iterable[dict[str, str]]) -> None:
    """Write a split's file: one JSON object {"text", "id"} per line."""
    write_text(path, "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))


def read_split(corpus_dir: Path, split: str) -> list[str]:
    """The texts of one split of a corpus stage directory, in order."""
    if split not in SPLITS:
        raise EdgeError(f"there is no split {split!r}", f"splits: {', '.join(SPLITS)}")
    return read_documents(corpus_dir / f"{split}.jsonl")


def read_documents(path: Path) -> list[str]:
    """The texts of a split's file (`train.jsonl`), in order; EdgeError if it is missing or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line)["text"] for line in lines if line.strip()]
    except OSError as error:
        raise os_error(error, path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise EdgeError(f"{path} is not a split of a corpus ({error})", "make the corpus again") from error
