"""Text from a model, streamed, computing only what its cache does not hold yet."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.sampling import Sampler, Sampling
from minigpt_edge_runtime.generate.streaming import TextStream

if TYPE_CHECKING:
    import numpy as np

CHUNK = 256  # prompt tokens evaluated at once: how long a cancelled generation may go on


class PromptTooLong(EdgeError):
    """A prompt leaves no room for an answer in the engine's context."""


def document_ids(engine: Engine, text: str, document_start: str | None = None) -> list[int]:
    """Token ids of a document that begins with `text`.

    Raises:
        EdgeError: `document_start` is not a token of the model, or the model has none to begin with.
    """
    return [engine.document_start(document_start), *engine.tokenize(text)]


class Session:
    """An engine and the tokens in its cache: a prompt that begins like the last one is not computed twice.

    Whoever holds a session leaves the engine's cache to it (emptying it does no harm).
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> int:
        """Forget what the cache does not share with `prompt`.

        Returns:
            How many of the prompt's tokens are cached: never all, so that there are logits to sample from.
        """
        del self._tokens[self.engine.cached :]
        pairs = zip(self._tokens, prompt[:-1], strict=False)
        shared = next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(self._tokens), len(prompt) - 1)
        )
        self.engine.keep(shared)
        del self._tokens[self.engine.cached :]
        return len(self._tokens)

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        """`Engine.eval`."""
        logits = self.engine.eval(tokens)
        self._tokens.extend(tokens)
        return logits


@dataclass
class Generation:
    """One answer: iterate over it once for pieces of text, then read how it went.

    `finish_reason` is "end" (the model ended it), "stop" (a stop string), "length" (max_tokens), "context"
    (the cache is full) or "cancelled". Seconds are wall-clock; `first_token_seconds` begins with the
    prompt's evaluation. `fresh` computes from an empty cache: kernels round differently for one token and for
    many, so with a cached beginning the same seed may give another text.

    Raises:
        UsageError: max_tokens is below 1, or the prompt is empty.
        PromptTooLong: the prompt does not fit into the context.
    """

    session: Session
    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: Sequence[str] = ()
    fresh: bool = False

    finish_reason: str = field(default="", init=False)
    cached_tokens: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    first_token_seconds: float = field(default=0.0, init=False)
    decode_seconds: float = field(default=0.0, init=False)
    _cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must be 1 or more")
        if not self.prompt:
            raise UsageError("the prompt has no tokens", "give some text")
        room = self.session.engine.context_length
        if len(self.prompt) >= room:
            raise PromptTooLong(
                f"the prompt has {len(self.prompt):,} tokens, the context holds {room:,}",
                "shorten the prompt, or ask for a longer context",
            )

    def cancel(self) -> None:
        """End the text at the next token; may be called from any thread."""
        self._cancelled = True

    def __iter__(self) -> Iterator[str]:
        stream = TextStream(self.stop)
        for token in self._tokens():
            if text := stream.push(self.session.engine.piece(token)):
                yield text
            if stream.stopped:
                self.finish_reason = "stop"
                return
        if text := stream.push(b"", last=True):
            yield text

    def _tokens(self) -> Iterator[int]:
        """Yield sampled tokens, evaluating each only when another one is wanted."""
        engine = self.session.engine
        sampler = Sampler(self.sampling)
        for token in self.prompt:
            sampler.accept(token)
        began = first = time.perf_counter()
        logits = self._prefill()
        while logits is not None and not self._cancelled:
            token = sampler.sample(logits)
            now = time.perf_counter()
            if not self.tokens:
                first, self.first_token_seconds = now, now - began
            if engine.is_end(token):
                self.finish_reason = "end"
                return
            sampler.accept(token)
            self.tokens += 1
            self.decode_seconds = now - first
            yield token
            if self.tokens >= self.max_tokens:
                self.finish_reason = "length"
                return
            if len(self.prompt) + self.tokens > engine.context_length:
                self.finish_reason = "context"
                return
            logits = self.session.eval([token])
        self.finish_reason = "cancelled"

    def _prefill(self) -> np.ndarray | None:
        """Logits after the prompt; None if cancelled on the way."""
        if self.fresh:
            self.session.engine.reset()
        self.cached_tokens = self.session.begin(self.prompt)
        logits = None
        for start in range(self.cached_tokens, len(self.prompt), CHUNK):
            if self._cancelled:
                return None
            logits = self.session.eval(self.prompt[start : start + CHUNK])
        return logits

    def stats(self) -> dict[str, float | int | str]:
        """How it went, JSON-able; tokens/s counts the tokens after the first one."""
        rate = (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0
        return {
            "finish_reason": self.finish_reason,
            "prompt_tokens": len(self.prompt),
            "cached_tokens": self.cached_tokens,
            "tokens": self.tokens,
            "first_token_ms": round(1000 * self.first_token_seconds, 3),
            "tokens_per_second": round(rate, 2),
        }
