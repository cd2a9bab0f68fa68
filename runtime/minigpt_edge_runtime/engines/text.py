"""Text to token ids and back by a tokenizer.json, for model files that carry no tokenizer of their own."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.engines.engine import start_token
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_text
from minigpt_edge_runtime.formats.end_tokens import ends_by_text
from minigpt_edge_runtime.formats.tokenizer_files import (
    TOKENIZER,
    chat_templates,
    read_tokenizer_config,
    special_texts,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_AGAIN = "copy or build the bundle again"


def open_tokenizer(source: Path | Mapping[str, Any], hint: str = _AGAIN) -> Tokenizer:
    """A tokenizer.json, as a tokenizer that neither cuts nor pads.

    Args:
        source: the file, or what is in it.
        hint: what a user can do about a damaged one.

    Raises:
        EdgeError: it is missing or damaged.
    """
    from tokenizers import Tokenizer

    text = read_text(source, hint) if isinstance(source, Path) else json.dumps(source, ensure_ascii=False)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises bare Exception
        name = source if isinstance(source, Path) else TOKENIZER
        raise EdgeError(f"{name} can't be read: it is damaged ({error})", hint) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class TextCodec:
    """The tokenizer of a model directory: byte-level BPE, or SentencePiece pieces with byte fallback.

    Args:
        directory: with tokenizer.json, and if there tokenizer_config.json and chat_template.jinja.
        end_ids: token ids that end a generation, besides the tokenizer's own end token.

    Raises:
        EdgeError: a file is missing or damaged.
    """

    def __init__(self, directory: Path, end_ids: Sequence[int] = ()) -> None:
        self._tokenizer = open_tokenizer(directory / TOKENIZER)
        self._lock = threading.Lock()  # a setting of the tokenizer tells whether special tokens are text
        settings = read_tokenizer_config(directory, _AGAIN)
        self.chat_templates = chat_templates(directory, settings, _AGAIN)
        self.special_texts = special_texts(settings)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._whole = {index: token.content for index, token in added.items() if not token.special}
        self._byte_level = "ByteLevel" in str(self._tokenizer.decoder)
        self._bytes = symbol_bytes()
        # llama.cpp ends there too, so that both engines end where the other does.
        self._ends = {*end_ids, *ends_by_text(self._tokenizer.token_to_id)}
        if (end := self._id("eos")) is not None:
            self._ends.add(end)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        # A SentencePiece tokenizer writes a space before the text, which its decoder takes off.
        first = self.tokenize("a")[:1]
        self._prefix = b" " if first and self.piece(first[0]).startswith(b" ") else b""

    adds_start = False  # transformers takes a rendered prompt as it is

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones too."""
        return int(self._tokenizer.get_vocab_size())

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added; `special` reads "<|…|>" as special tokens, not as text."""
        clean = text.encode("utf-8", errors="replace").decode()
        with self._lock:
            self._tokenizer.encode_special_tokens = not special
            return list(self._tokenizer.encode(clean, add_special_tokens=False).ids)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The bytes of `tokens`; special tokens give nothing unless `special`."""
        return b"".join(self.piece(int(t), special=special) for t in tokens).removeprefix(self._prefix)

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes one token adds to a text, perhaps part of a character."""
        known = self._pieces.get((token, special))
        if known is None:
            known = self._pieces[token, special] = self._piece(token, special)
        return known

    def _piece(self, token: int, special: bool) -> bytes:
        if token in self._special:
            return self._special[token].encode() if special else b""
        if token in self._whole:
            return self._whole[token].encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""  # a row beyond the vocabulary, as padded embeddings have
        if self._byte_level:
            # A symbol that stands for no byte comes from a token that was added by hand.
            return b"".join(self._bytes.get(symbol) or symbol.encode() for symbol in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode()

    def special_text(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" if there is none."""
        return self.special_texts.get(f"{name}_token", "")

    def document_start(self, text: str | None = None) -> int:
        """The token every document starts with: the one written as `text`, else <|endoftext|>, BOS or EOS."""
        return start_token(self._tokenizer.token_to_id, text, (self._id("bos"), self._id("eos")))

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        return token in self._ends

    def _id(self, name: str) -> int | None:
        text = self.special_text(name)
        return self._tokenizer.token_to_id(text) if text else None


def symbol_bytes() -> dict[str, bytes]:
    """Byte-level BPE's symbol of each byte: printable Latin-1 stands for itself, others follow U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    symbols = {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(others)}
    return {symbol: bytes([byte]) for symbol, byte in symbols.items()}
