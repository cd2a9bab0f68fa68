"""What every engine can do, whatever the file format; `engines.open` picks the engine for a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT = 2048
END_OF_TEXT = "<|endoftext|>"  # begins documents where a vocabulary has it


class Fork(NamedTuple):
    """Token ids of a text's beginning, at least one, and of several continuations of it."""

    beginning: Sequence[int]
    branches: Sequence[Sequence[int]]


class Vocabulary(Protocol):
    """Text to token ids and back, and what a model's special tokens and chat templates are."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """The model's Jinja chat templates by name; a single one is called "default"."""

    @property
    def special_texts(self) -> Mapping[str, str]:
        """The special tokens that a chat template may name, "bos_token" and so on: variable -> text."""

    @property
    def adds_start(self) -> bool:
        """Whether BOS is put before a rendered chat prompt that does not begin with it."""

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added; `special` reads "<|…|>" as special tokens, not as text.

        Raises:
            EdgeError: the text is too long for the tokenizer.
        """

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The bytes of `tokens`; special tokens give nothing unless `special`."""

    def piece(self, token: int) -> bytes:
        """The bytes one token adds to a text, perhaps part of a character; nothing for a special token."""

    def special_text(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" if the vocabulary has none."""

    def document_start(self, text: str | None = None) -> int:
        """The token every document starts with: the one written as `text`, else <|endoftext|>, BOS or EOS.

        Raises:
            EdgeError: `text` is not one token, or the vocabulary has none of the others.
        """

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""


class Engine(Vocabulary, ABC):
    """A loaded model with one sequence in its cache. Use it as a context manager, or call `close`.

    One thread at a time may use it; its `Vocabulary` and the attributes but `cached` may be used from others
    meanwhile. Token ids outside the vocabulary are a ValueError.

    Attributes:
        text: the vocabulary, of the file or beside it.
        context_length: tokens the cache can hold.
        vocab_size: tokens whose logits are computed.
        cached: tokens the cache holds now.
        logits_all: whether `score`, `forks` and `logits` are possible.
    """

    text: Vocabulary
    context_length: int
    vocab_size: int
    cached: int = 0
    logits_all: bool = True

    @property
    def chat_templates(self) -> Mapping[str, str]:
        return self.text.chat_templates

    @property
    def special_texts(self) -> Mapping[str, str]:
        return self.text.special_texts

    @property
    def adds_start(self) -> bool:
        return self.text.adds_start

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        return self.text.tokenize(text, special=special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        return self.text.detokenize(tokens, special=special)

    def piece(self, token: int) -> bytes:
        return self.text.piece(token)

    def special_text(self, name: str) -> str:
        return self.text.special_text(name)

    def document_start(self, text: str | None = None) -> int:
        return self.text.document_start(text)

    def is_end(self, token: int) -> bool:
        return self.text.is_end(token)

    @abstractmethod
    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, at least one, to the cache: prefill and decode in one.

        Returns:
            The last token's logits, float32 [vocab]: a view, valid until the next call.

        Raises:
            EdgeError: the cache has no room for them (it is left as it was), or computing failed.
        """

    @abstractmethod
    def keep(self, count: int) -> None:
        """Forget all but the first `count` cached tokens.

        A model whose state has no parts to remove forgets everything: read `cached` afterwards.

        Raises:
            ValueError: there are not as many.
        """

    def reset(self) -> None:
        """Empty the cache: `keep(0)`."""
        self.keep(0)

    @abstractmethod
    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of every token from an empty cache, in float32 [n, vocab] views valid until the next.

        Raises:
            EdgeError: there are more tokens than the cache can hold, or computing failed.
            ValueError: the engine was opened without `logits_all`.
        """

    @abstractmethod
    def forks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Logits that predict every token of texts' continuations. The cache is empty before and after.

        Yields:
            (index of the fork, of a branch in it, of a token in that, the logits that predict this token and
            those after it): float32 [n, vocab] views valid until the next. Forks come in order.

        Raises:
            EdgeError: the cache has no room for the longest text, or computing failed.
            ValueError: the engine was opened without `logits_all`.
        """

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """`score` in one array: float32 [T, vocab]."""
        import numpy as np

        result = np.empty((len(tokens), self.vocab_size), dtype=np.float32)
        start = 0
        for piece in self.score(tokens):
            result[start : start + len(piece)] = piece
            start += len(piece)
        return result

    @abstractmethod
    def description(self) -> dict[str, object]:
        """The engine's name, its package and version, and what of the CPU it uses; JSON-able."""

    @abstractmethod
    def close(self) -> None:
        """Free the model; the engine is of no use afterwards. Closing twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _begin_scoring(self) -> None:
        """Empty the cache; ValueError if the engine can't score."""
        if not self.logits_all:
            raise ValueError("open the engine with logits_all=True to score")
        self.reset()

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if len(tokens) and (min(tokens) < 0 or max(tokens) >= self.vocab_size):
            raise ValueError(f"token ids must lie in 0..{self.vocab_size - 1}")

    def _check_room(self, count: int) -> None:
        """EdgeError if the cache can't hold `count` more tokens."""
        if self.cached + count > self.context_length:
            raise EdgeError(
                f"{self.cached + count:,} tokens do not fit into the context of {self.context_length:,}",
                "shorten the text, or open the model with a longer context",
            )


def context_of(name: str, trained: int, asked: int | None) -> int:
    """Tokens of a cache: those asked for, else what the model was made for, at most DEFAULT_CONTEXT.

    Raises:
        EdgeError: the model called `name` was not made for as many.
    """
    if asked is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 0 < asked <= trained:
        raise EdgeError(
            f"a context of {asked:,} tokens is not possible, {name} was made for 1 to {trained:,}",
            f"use a context of at most {trained:,}",
        )
    return asked


def start_token(find: Callable[[str], int | None], text: str | None, others: Sequence[int | None]) -> int:
    """`Engine.document_start` by a function that finds the id of a token; `others` are BOS and EOS."""
    if text is not None:
        if (index := find(text)) is None:
            raise EdgeError(
                f"{text!r} is not a token of this model", "use texts made for this model's vocabulary"
            )
        return index
    for index in (find(END_OF_TEXT), *others):
        if index is not None:
            return index
    raise EdgeError("this model has no token to begin a document with", "export it with a BOS or EOS token")
