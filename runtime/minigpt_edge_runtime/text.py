"""Text to token ids and back by a tokenizer.json, for model files that carry no tokenizer of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import os_error, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json.

    Raises:
        EdgeError: it is missing or damaged.
    """
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError):
            raise os_error(error, path) from error
        raise EdgeError(f"{path} is not UTF-8", "copy or build the bundle again") from error
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise EdgeError(f"{path} can't be read ({error})", "copy or build the bundle again") from error


class TextCodec:
    """The tokenizer of a model directory: byte-level BPE, or SentencePiece pieces with byte fallback.

    Args:
        directory: with tokenizer.json, and if there tokenizer_config.json and chat_template.jinja.
        end_ids: token ids that end a generation, besides the tokenizer's own end token.

    Raises:
        EdgeError: a file is missing or damaged.
    """

    def __init__(self, directory: Path, end_ids: Sequence[int] = ()) -> None:
        self._tokenizer = open_tokenizer(directory / "tokenizer.json")
        settings = directory / "tokenizer_config.json"
        self._settings: dict[str, Any] = read_json(settings) if settings.is_file() else {}
        template = directory / "chat_template.jinja"
        self.chat_template: str | None = (
            template.read_text(encoding="utf-8")
            if template.is_file()
            else self._settings.get("chat_template")
        )
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {index: token.content for index, token in added.items() if token.special}
        self._whole = {index: token.content for index, token in added.items() if not token.special}
        self._byte_level = "ByteLevel" in str(type(self._tokenizer.decoder)) or "ByteLevel" in str(
            self._tokenizer.decoder
        )
        self._bytes = _symbol_bytes()
        self._ends = {*end_ids, *filter(None, [self._id("eos")])}
        self._pieces: dict[tuple[int, bool], bytes] = {}
        # a SentencePiece tokenizer writes a space before the text, which its way back takes off
        self._prefix = b"" if self._byte_level or not self._starts_with_space() else b" "

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def adds_start(self) -> bool:
        """Whether the settings say that a begin-of-sequence token precedes every prompt."""
        return bool(self._settings.get("add_bos_token"))

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added; `special` reads "<|…|>" as special tokens, not as text."""
        self._tokenizer.encode_special_tokens = not special
        clean = text.encode("utf-8", errors="replace").decode()
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
            return bytes(self._bytes[symbol] for symbol in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("\u2581", " ").encode()

    def special_text(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" if there is none."""
        value = self._settings.get(f"{name}_token")
        return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")

    def document_start(self, text: str | None = None) -> int:
        """The token every document starts with: the one written as `text`, else <|endoftext|>, BOS or EOS."""
        if text is not None:
            index = self._tokenizer.token_to_id(text)
            if index is None:
                raise EdgeError(
                    f"{text!r} is not a token of this model", "use texts made for this model's vocabulary"
                )
            return int(index)
        for candidate in (self._tokenizer.token_to_id(END_OF_TEXT), self._id("bos"), self._id("eos")):
            if candidate is not None:
                return int(candidate)
        raise EdgeError(
            "this model has no token to begin a document with", "export it with a BOS or EOS token"
        )

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        return token in self._ends

    def _id(self, name: str) -> int | None:
        text = self.special_text(name)
        return self._tokenizer.token_to_id(text) if text else None

    def _starts_with_space(self) -> bool:
        first = self._tokenizer.encode("a", add_special_tokens=False).tokens
        return bool(first) and first[0].startswith("\u2581")


def _symbol_bytes() -> dict[str, int]:
    """Byte-level BPE's symbol of each byte: printable Latin-1 stands for itself, others follow U+0100."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(others)}
