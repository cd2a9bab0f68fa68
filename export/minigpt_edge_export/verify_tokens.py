"""Whether a file's tokenizer does what the checkpoint's does in transformers: ids, prompts and end tokens.

With specials off, "<|im_end|>" in a text is text to both (`tokenizers` splits special tokens out unless
`encode_special_tokens` is set), and added tokens that are not special are whole tokens to both. With specials
on, both read special tokens. Both modes are compared, then the prompts that the chat template renders, what
is put around a plain text, and for every token whether it ends a generation. Bytes that no token can spell
are dropped by both; the round trip is compared without them, and they are reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minigpt_edge_export.gguf.sentencepiece import BYTES, SPACE
from minigpt_edge_export.gguf.tokenizer import read_tokenizer
from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_export.tokens.prompts import rendered
from minigpt_edge_export.tokens.special_tokens import special_tokens
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.llama_vocabulary import LlamaVocabulary, open_vocabulary
from minigpt_edge_runtime.engines.open import is_gguf, open_engine
from minigpt_edge_runtime.engines.text import open_tokenizer, symbol_bytes
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json
from minigpt_edge_runtime.formats.tokenizer_files import (
    DEFAULT,
    TOKENIZER,
    chat_templates,
    read_tokenizer_config,
    special_texts,
)
from minigpt_edge_runtime.generate.chat import ChatTemplateError, chat_ids

_KEPT = 5  # examples of failures that are kept
_CONTEXT = 64  # a tokenizer needs no cache
_SPACES = (
    "a",
    " a",
    "  a   b ",
    "\n",
    " \n a\n\n\nb\t\tc",
    "a  \n",
    "    x = 1\n        y",
    "1  2",
    "\u2581a \u2581",
)
_OVERLAPS = 200  # texts at most that try which of two overlapping added tokens is found


@dataclass(frozen=True)
class Mismatch:
    """A text whose token ids differ: the ids from the first difference on, at most 20 of each."""

    text: str
    specials: bool
    position: int
    expected: list[int]
    found: list[int]


@dataclass(frozen=True)
class TokenParity:
    """Token ids of a file against `tokenizers`, and the way back to bytes.

    Attributes:
        texts: number of texts compared, rendered prompts too.
        tokens: number of their tokens, with specials off.
        mismatched: texts whose ids differ, with specials off or on.
        mismatches: the first few of them.
        roundtrip_failed: texts that do not come back byte for byte.
        roundtrip_failures: the first few of them.
        unspellable_bytes: bytes that no token can spell, in either tokenizer.
        ends: tokens that end a generation in the file alone, or in the checkpoint alone.
    """

    texts: int
    tokens: int
    mismatched: int
    mismatches: list[Mismatch]
    roundtrip_failed: int
    roundtrip_failures: list[str]
    unspellable_bytes: list[int]
    ends: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all texts have the same ids and come back byte for byte, and answers end alike."""
        return self.texts > 0 and not self.reasons

    @property
    def reasons(self) -> list[str]:
        """What differs, in words."""
        reasons = []
        if self.mismatched:
            first = self.mismatches[0].text[:60]
            reasons.append(f"{self.mismatched} of {self.texts} texts get other token ids, such as {first!r}")
        if self.roundtrip_failed:
            reasons.append(f"{self.roundtrip_failed} of {self.texts} texts do not come back byte for byte")
        if self.ends:
            reasons.append(f"{', '.join(map(repr, self.ends[:_KEPT]))} end answers in one of both only")
        return reasons


def verify_tokenizer(model_path: Path, tokenizer_json: Path, texts: Sequence[str]) -> TokenParity:
    """Compare a file with the checkpoint's tokenizer on every text, each added token, prompts and ends.

    Args:
        model_path: a GGUF file, with or without weights, or an ONNX file in its directory.
        tokenizer_json: in the checkpoint's directory.

    Raises:
        EdgeError: a file is missing or damaged.
    """
    with _opened(model_path) as opened:
        return _Comparison(opened, tokenizer_json).run(texts)


def prove_tokenizer(directory: Path, scratch: Path) -> None:
    """Ask llama.cpp, before anything is computed, whether a GGUF file can hold a checkpoint's tokenizer.

    Args:
        directory: holds tokenizer.json and config.json.
        scratch: an existing folder for a file of the vocabulary's size, removed at the end.

    Raises:
        EdgeError: it can't, or llama.cpp would make other tokens of some text.
    """
    from gguf import GGUFWriter

    rows = int(read_json(directory / "config.json")["vocab_size"])
    tokenizer = read_tokenizer(directory, rows)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = GGUFWriter(path, "llama")
        tokenizer.write(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        parity = verify_tokenizer(path, directory / TOKENIZER, list(TEN_SCRIPTS.values()))
    if not parity.good:
        example = "".join(
            f" (expected {m.expected}, llama.cpp makes {m.found})" for m in parity.mismatches[:1]
        )
        raise EdgeError(
            f"llama.cpp can't do what the model's tokenizer does: {'; '.join(parity.reasons)}{example}",
            "use a model with another tokenizer, or change what differs in its tokenizer.json",
        )


@contextmanager
def _opened(path: Path) -> Iterator[Engine | LlamaVocabulary]:
    if is_gguf(path):
        with open_vocabulary(path) as vocabulary:
            yield vocabulary
    else:
        with open_engine(path, _CONTEXT, 1) as engine:
            yield engine


class _Comparison:
    """A file's tokenizer and the checkpoint's, and what was found so far."""

    def __init__(self, opened: Engine | LlamaVocabulary, tokenizer_json: Path) -> None:
        self.opened, self.directory = opened, tokenizer_json.parent
        self.tokenizer = open_tokenizer(tokenizer_json, "use an undamaged tokenizer.json")
        find = self.tokenizer.token_to_id
        self.special = special_tokens(self.directory, self.tokenizer, opened.vocab_size)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.added = [token.content for token in added]
        self.controls = [token.content for token in added if token.special]
        self.pieces = find(BYTES[0]) is not None
        # Byte-level BPE drops bytes without a symbol, here and in llama.cpp; pieces spell all of them.
        symbols = {} if self.pieces else symbol_bytes()
        self.unspellable = sorted(byte[0] for s, byte in symbols.items() if find(s) is None)
        self.count, self.mismatches, self.failures = 0, list[Mismatch](), list[str]()

    def run(self, texts: Sequence[str]) -> TokenParity:
        tried = [*texts, *_SPACES, *(f"a{token}b {token} c" for token in self.added), *_overlaps(self.added)]
        for text in tried:
            self._text(text)
        prompts = self._prompts()
        return TokenParity(
            texts=len(tried) + prompts,
            tokens=self.count,
            mismatched=len({mismatch.text for mismatch in self.mismatches}),
            mismatches=self.mismatches[:_KEPT],
            roundtrip_failed=len(self.failures),
            roundtrip_failures=[text[:500] for text in self.failures[:_KEPT]],
            unspellable_bytes=self.unspellable,
            ends=self._ends(),
        )

    def _text(self, text: str) -> None:
        special = any(token in text for token in self.controls)
        for specials in (False, True) if special else (False,):
            self.tokenizer.encode_special_tokens = not specials
            expected = self.tokenizer.encode(text, add_special_tokens=False).ids
            found = self.opened.tokenize(text, special=specials)
            self._note(text, specials, expected, found)
            if not specials:
                self.count += len(expected)
            if self.pieces and any(token in text for token in (*self.added, SPACE)):
                continue  # it writes a space after an added token, and for \u2581, in transformers too
            dropped = bytes(self.unspellable)
            if self.opened.detokenize(found, special=True) != text.encode().translate(None, dropped):
                self.failures.append(text)

    def _prompts(self) -> int:
        """Compare the prompts of conversations, and without a chat template that of a plain text."""
        settings = read_tokenizer_config(self.directory)
        template = chat_templates(self.directory, settings).get(DEFAULT)
        self.tokenizer.encode_special_tokens = False
        if template:
            prompts = rendered(template, special_texts(settings))
            for messages, text in prompts:
                try:
                    found = chat_ids(self.opened, messages)
                except ChatTemplateError:  # the checkpoint's takes it
                    found = []
                self._note(text, True, self.tokenizer.encode(text, add_special_tokens=False).ids, found)
            return len(prompts)
        if not isinstance(self.opened, LlamaVocabulary):
            return 0  # nothing is put around a text by those who read an ONNX model
        whole = self.opened.tokenize("a b", special=True, whole=True)
        self._note("a b", True, self.tokenizer.encode("a b").ids, whole)
        return 1

    def _ends(self) -> list[str]:
        ends = set(self.special.ends)
        differ = [
            index for index in range(self.opened.vocab_size) if self.opened.is_end(index) != (index in ends)
        ]
        return [self.tokenizer.id_to_token(index) or f"token {index}" for index in differ]

    def _note(self, text: str, specials: bool, expected: list[int], found: list[int]) -> None:
        if found != expected:
            self.mismatches.append(_mismatch(text, specials, expected, found))


def _overlaps(tokens: Sequence[str]) -> list[str]:
    """Texts in which one added token ends where a longer one begins: the library finds the first of both."""
    beginnings: dict[str, list[str]] = {}
    for token in tokens:
        for end in range(1, len(token)):
            beginnings.setdefault(token[:end], []).append(token)
    texts = [
        f"a{token}{other[len(token) - at :]}b"
        for token in tokens
        for at in range(1, len(token))
        for other in beginnings.get(token[at:], ())
        if len(other) > len(token)
    ]
    return texts[:: max(1, len(texts) // _OVERLAPS)]


def _mismatch(text: str, specials: bool, expected: list[int], found: list[int]) -> Mismatch:
    pairs = zip(expected, found, strict=False)
    shorter = min(len(expected), len(found))
    position = next((index for index, (a, b) in enumerate(pairs) if a != b), shorter)
    shown = slice(position, position + 20)
    return Mismatch(text[:500], specials, position, expected[shown], found[shown])
