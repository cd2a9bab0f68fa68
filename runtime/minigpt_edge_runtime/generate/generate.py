"""Text from a model, streamed, computing only what its cache does not hold yet."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.logprobs import TokenLogprob, token_logprob
from minigpt_edge_runtime.generate.sampling import Sampler, Sampling
from minigpt_edge_runtime.generate.streaming import TextStream

if TYPE_CHECKING:
    import numpy as np

    from minigpt_edge_runtime.generate.grammar import Constraint

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

    Attributes:
        begun: prompts so far; it tells an answer that another one has taken its place.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.begun = engine, 0
        self._tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> int:
        """Forget what the cache does not share with `prompt`.

        Returns:
            How many of the prompt's tokens are cached: never all, so that there are logits to sample from.
        """
        self.begun += 1
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

    Attributes:
        constraint: what the answer keeps to, at its beginning; it is copied, so several may share it.
        shown: special tokens whose text belongs to the answer.
        logprobs: how many of the likeliest tokens `said` tells for every token; None leaves it empty.
        echo: tell the prompt's tokens too, in `asked`; they are computed one by one, as slowly as an answer.
            No tokens at all (`max_tokens` 0) are possible then.

    Raises:
        UsageError: max_tokens is below 1, or the prompt is empty; later, another generation began meanwhile.
        PromptTooLong: the prompt does not fit into the context.
    """

    session: Session
    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: Sequence[str] = ()
    fresh: bool = False
    constraint: Constraint | None = None
    shown: Collection[int] = ()
    logprobs: int | None = None
    echo: bool = False

    said: list[TokenLogprob] = field(default_factory=list, init=False)
    asked: list[TokenLogprob] = field(default_factory=list, init=False)
    finish_reason: str = field(default="", init=False)
    cached_tokens: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    first_token_seconds: float = field(default=0.0, init=False)
    decode_seconds: float = field(default=0.0, init=False)
    _cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        least = 0 if self.echo else 1
        if self.max_tokens < least:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must be {least} or more")
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
        engine, stream = self.session.engine, TextStream(self.stop)
        for token in self._tokens(stream):
            piece = engine.detokenize([token], special=True) if token in self.shown else engine.piece(token)
            if text := stream.push(piece):
                yield text
            if stream.stopped:
                self.finish_reason = "stop"
                return
        if text := stream.push(b"", last=True):
            yield text

    def _tokens(self, stream: TextStream) -> Iterator[int]:
        """Yield sampled tokens, evaluating each only when another one is wanted."""
        engine = self.session.engine
        constraint = self.constraint and self.constraint.copy()  # it grows, and is let go at the end
        sampler = Sampler(self.sampling)
        sampler.read(self.prompt)
        began = first = time.perf_counter()
        logits = self._prefill()
        turn = self.session.begun
        while logits is not None and not self._cancelled:
            if self.tokens >= self.max_tokens:
                self.finish_reason = "length"
                return
            token = sampler.sample(constraint.masked(logits) if constraint else logits)
            now = time.perf_counter()
            if not self.tokens:
                first, self.first_token_seconds = now, now - began
            if engine.is_end(token):
                self.finish_reason = "end"
                return
            if self.logprobs is not None:
                self.said.append(token_logprob(logits, token, stream.length, self.logprobs))
            sampler.accept(token)
            self.tokens += 1
            self.decode_seconds = now - first
            yield token
            if reason := self._full(token, constraint):
                self.finish_reason = reason
                return
            if self.session.begun != turn:
                raise UsageError("another answer began before this one ended", "read them one after another")
            logits = self.session.eval([token])
        self.finish_reason = "cancelled"

    def _full(self, token: int, constraint: Constraint | None) -> str:
        """Why there is nothing to sample after a token, if so."""
        if constraint and constraint.accept(token):
            return "end"
        if self.tokens >= self.max_tokens:
            return "length"
        return "context" if len(self.prompt) + self.tokens > self.session.engine.context_length else ""

    def _prefill(self) -> np.ndarray | None:
        """Logits after the prompt; None if cancelled on the way."""
        tells = self.echo and self.logprobs is not None
        if self.fresh or tells:
            self.session.engine.reset()
        self.cached_tokens = self.session.begin(self.prompt)
        logits, step, heard = None, 1 if tells else CHUNK, TextStream()
        for start in range(self.cached_tokens, len(self.prompt), step):
            if self._cancelled:
                return None
            if tells:
                self._tell(self.prompt[start], logits, heard)
            logits = self.session.eval(self.prompt[start : start + step])
        return logits

    def _tell(self, token: int, logits: np.ndarray | None, heard: TextStream) -> None:
        """Record a token of the prompt, which logits predict, after the text heard."""
        engine, start = self.session.engine, heard.length
        if logits is None or self.logprobs is None:
            self.asked.append(TokenLogprob(token, start, None, ()))
        else:
            self.asked.append(token_logprob(logits, token, start, self.logprobs))
        heard.push(engine.piece(token) if start else engine.detokenize([token]))

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
