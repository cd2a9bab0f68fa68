"""A tokenizer as transformers reads it: tokenizer.json, and the added tokens of the files beside it."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any

from minigpt_edge.models.compare import in_short, quiet
from minigpt_edge_export.gguf.sentencepiece import is_sentencepiece
from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_runtime.engines.text import open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, understanding
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

_FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token
_ADDED = 200  # added tokens that are tried inside texts
_AGAIN = "save the tokenizer again: AutoTokenizer.from_pretrained(…).save_pretrained(…)"


def read_hf_tokenizer(source: Path) -> dict[str, Any]:
    """The content of a directory's tokenizer.json, with the added tokens that transformers adds to it.

    Raises:
        EdgeError: there is none, or transformers can't read it.
    """
    if not (source / TOKENIZER).is_file():
        raise EdgeError(
            f"{source} has no tokenizer.json, so its tokenizer can't be read",
            "save it with AutoTokenizer.from_pretrained(…).save_pretrained(…), or use another model",
        )
    content: dict[str, Any] = read_json(source / TOKENIZER)
    with understanding(source / TOKENIZER, "restore the file"):
        stored = {token["id"]: token for token in content.get("added_tokens") or ()}
        open_tokenizer(source / TOKENIZER, "restore the file")
        for index, token in _plain(source).added_tokens_decoder.items():
            flags = {name: getattr(token, name) for name in _FLAGS}
            stored[index] = {**stored.get(index, {}), "id": index, **flags}
        content["added_tokens"] = [stored[index] for index in sorted(stored)]
    return content


def _plain(source: Path) -> Any:
    """The tokenizer by transformers' class that follows tokenizer.json."""
    from transformers import PreTrainedTokenizerFast

    with quiet():
        try:
            return PreTrainedTokenizerFast.from_pretrained(str(source), local_files_only=True)
        except Exception as error:  # transformers and tokenizers raise many kinds
            raise EdgeError(
                f"transformers can't read the tokenizer of {source} ({in_short(error)})", _AGAIN
            ) from error


def by_own_class(source: Path) -> Any:
    """The tokenizer by the class that tokenizer_config.json names; None if that needs code of a stranger."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            return AutoTokenizer.from_pretrained(str(source), local_files_only=True)
        except Exception:  # transformers and what it uses raise many kinds; tokenizer.json can do without
            return None


def check_rows(content: dict[str, Any], rows: int, source: Path) -> None:
    """EdgeError if tokens of a tokenizer.json have no row among the embedding's `rows`."""
    vocabulary = open_tokenizer(content).get_vocab(with_added_tokens=True)
    beyond = [token for token, index in sorted(vocabulary.items(), key=lambda item: item[1]) if index >= rows]
    if beyond:
        named = ", ".join(beyond[:5]) + (", …" if len(beyond) > 5 else "")
        raise EdgeError(
            f"{source}: the embedding has {rows:,} rows, none for {len(beyond)} tokens of the tokenizer: "
            f"{named}",
            "give the tokenizer that the model was saved with, take them out of its files, or give them rows "
            "and train these (model.resize_token_embeddings(len(tokenizer)))",
        )


def compare_tokenizers(source: Path, directory: Path) -> None:
    """Compare ids of some texts and of added tokens; texts are in NFC, which llama.cpp does not make.

    What tokenizer.json says counts. Where transformers splits some text by rules of the class that
    tokenizer_config.json names instead, that is said on stderr: it does so for published models whose
    tokenizer.json is right, SmolLM2 among them.

    Raises:
        EdgeError: ids differ, by such rules for most texts, or transformers can't read the tokenizer.
    """
    ours = open_tokenizer(directory / TOKENIZER)
    pieces = is_sentencepiece(read_json(directory / TOKENIZER))  # its spaces are llama.cpp's: fit_tokenizer
    added = [token.content for _, token in sorted(ours.get_added_tokens_decoder().items())]
    texts = [unicodedata.normalize("NFC", text) for text in TEN_SCRIPTS.values()]
    texts += [f"a{token} b{token}c" for token in added[:_ADDED]]
    expected = [encoding.ids for encoding in ours.encode_batch(texts, add_special_tokens=False)]
    with quiet():
        found = _plain(source)(texts, add_special_tokens=False).input_ids
        for text, ids, theirs in zip(texts, expected, found, strict=True):
            if ids != theirs and not pieces:
                raise EdgeError(
                    f"{source}: transformers reads {text[:40]!r}… as {theirs[:8]}…, not as {ids[:8]}…", _AGAIN
                )
        own = by_own_class(source)
        try:
            found = own(texts, add_special_tokens=False).input_ids
        except Exception:  # There is none, or the class does not fit the files.
            return
    other = [text for text, ids, theirs in zip(texts, expected, found, strict=True) if ids != theirs]
    if other:
        said = (
            f"{source}: transformers' {type(own).__name__} splits {len(other)} of {len(texts)} texts "
            f"otherwise than tokenizer.json says, such as {other[0][:20]!r}"
        )
        if not pieces and 2 * len(other) > len(texts):  # A setting that is meant, such as add_prefix_space.
            raise EdgeError(said, _AGAIN)
        print(f"{said}; tokenizer.json counts", file=sys.stderr)
