"""What every engine can do, whatever the file format, and the one place that picks an engine for a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import numpy as np


DEFAULT_CONTEXT = 2048


END_OF_TEXT = "<|endoftext|>"  # begins documents where a vocabulary has it


class Fork(NamedTuple):
    """Token ids of a text's beginning, at least one, and of several continuations of it."""

    beginning: Sequence[int]
    branches: Sequence[Sequence[int]]


class Engine(Protocol):
    """A loaded model with one sequence in its cache. Use it as a context manager, or call `close`.

    One thread at a time may use it; what has to do with text alone (`tokenize` to `is_end`, and the
    properties but `cached`) may be called from others meanwhile. Token ids outside the vocabulary are a
    ValueError.
    """

    @property
    def context_length(self) -> int:
        """Tokens the cache can hold."""
        ...

    @property
    def cached(self) -> int:
        """Tokens the cache holds now."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja chat template, if it has one."""
        ...

    @property
    def adds_start(self) -> bool:
        """Whether the model says that a begin-of-sequence token precedes every prompt."""
        ...

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added; `special` reads "<|…|>" as special tokens, not as text.

        Raises:
            EdgeError: the text is too long for the tokenizer.
        """
        ...

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """The bytes of `tokens`; special tokens give nothing unless `special`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes one token adds to a text, perhaps part of a character; nothing for a special token."""
        ...

    def special_text(self, name: str) -> str:
        """The text of the "bos" or "eos" token, "" if the vocabulary has none."""
        ...

    def document_start(self, text: str | None = None) -> int:
        """The token every document starts with: the one written as `text`, else <|endoftext|>, BOS or EOS.

        Raises:
            EdgeError: `text` is not one token, or the vocabulary has none of the others.
        """
        ...

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        ...

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, at least one, to the cache: prefill and decode in one.

        Returns:
            The last token's logits, float32 [vocab]: a view, valid until the next call.

        Raises:
            EdgeError: the cache has no room for them (it is left as it was), or computing failed.
        """
        ...

    def keep(self, count: int) -> None:
        """Forget all but the first `count` cached tokens.

        A model whose state has no parts to remove forgets everything: read `cached` afterwards.

        Raises:
            ValueError: there are not as many.
        """
        ...

    def reset(self) -> None:
        """Empty the cache: `keep(0)`."""
        ...

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of every token from an empty cache, in float32 [n, vocab] views valid until the next.

        Raises:
            EdgeError: there are more tokens than the cache can hold, or computing failed.
            ValueError: the engine was opened without `logits_all`.
        """
        ...

    def forks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Logits that predict every token of texts' continuations. The cache is empty before and after.

        Yields:
            (index of the fork, of a branch in it, of a token in that, the logits that predict this token and
            those after it): float32 [n, vocab] views valid until the next. Forks come in order.

        Raises:
            EdgeError: the cache has no room for the longest text, or computing failed.
            ValueError: the engine was opened without `logits_all`.
        """
        ...

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """`score` in one array: float32 [T, vocab]."""
        ...

    def description(self) -> dict[str, object]:
        """The engine's name, its package and version, and what of the CPU it uses; JSON-able."""
        ...

    def close(self) -> None:
        """Free the model; the engine is of no use afterwards. Closing twice does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
