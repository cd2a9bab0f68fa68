"""What every engine can do, whatever the file format, and the one place that picks an engine for a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from minigpt_edge_runtime.errors import EdgeError, UsageError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT = 2048


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repeat_penalty` 1 switch themselves off.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.1
    repeat_last: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat_penalty", self.repeat_penalty > 0, "above 0"),
            ("repeat_last", self.repeat_last >= 0, "0 or more"),
            ("seed", 0 <= self.seed < 2**32 - 1, "between 0 and 4294967294"),
        ]
        for name, good, allowed in rules:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)}, it must be {allowed}")


class Sampler(Protocol):
    """Picks the next token from an engine's last logits, remembering what it picked."""

    def sample(self) -> int: ...

    def accept(self, token: int) -> None: ...

    def close(self) -> None: ...


class Engine(Protocol):
    """A loaded model with one sequence in its cache. Use it as a context manager, or call `close`."""

    @property
    def context_length(self) -> int:
        """Tokens the cache holds."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def chat_template(self) -> str | None:
        """The model's Jinja chat template, if it has one."""
        ...

    @property
    def adds_start(self) -> bool:
        """Whether the file says that a begin-of-sequence token precedes every prompt."""
        ...

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of `text`, nothing added; `special` reads "<|…|>" as special tokens, not as text."""
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
        """The token every document starts with: the one written as `text`, else <|endoftext|>, BOS or EOS."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether `token` ends a generation."""
        ...

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        """Append `tokens` to the cache.

        Returns:
            The last token's logits, float32 [vocab]: a view, valid until the next call.

        Raises:
            EdgeError: the cache is full.
        """
        ...

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of every token from an empty cache, in float32 [n, vocab] views valid until the next."""
        ...

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of every token from an empty cache: float32 [T, vocab]."""
        ...

    def description(self) -> dict[str, object]:
        """The engine's name, its package and version, and what of the CPU it uses; JSON-able."""
        ...

    def sampler(self, sampling: Sampling) -> Sampler: ...

    def reset(self) -> None:
        """Empty the cache."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


def default_threads() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_engine(
    path: Path | str, context_length: int | None = None, threads: int | None = None, logits_all: bool = False
) -> Engine:
    """Load a model file.

    Args:
        path: a .gguf file.
        context_length: tokens the cache holds; by default the model's own, at most 2,048.
        threads: CPU threads; by default all this process may use.
        logits_all: allow `score` and `logits` (needs memory for the logits of 512 tokens).

    Raises:
        EdgeError: the file is missing, damaged, foreign or unsupported, or the context too long for it.
    """
    path = Path(path)
    if not path.exists():
        raise EdgeError(f"{path} does not exist", "check the path")
    if path.suffix.lower() != ".gguf" and not is_gguf(path):
        raise EdgeError(
            f"{path} is not a model this runtime can run", "give a .gguf file or a bundle directory"
        )
    from minigpt_edge_runtime.gguf import LlamaEngine

    return LlamaEngine(path, context_length, threads or default_threads(), logits_all)


def is_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"
