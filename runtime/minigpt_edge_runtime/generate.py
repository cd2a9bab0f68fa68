"""Text from a model, streamed: whole characters only, stop strings never shown."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt_edge_runtime.engine import Engine, Sampler, Sampling
from minigpt_edge_runtime.errors import EdgeError, UsageError


class StopFilter:
    """Holds back text that may turn into a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; return what can be shown. After a stop string `stopped` is true, nothing more shown."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        return next((n for n in range(len(stop) - 1, 0, -1) if self._held.endswith(stop[:n])), 0)

    def flush(self) -> str:
        """What is still held back, once no more text comes."""
        shown, self._held = ("" if self.stopped else self._held), ""
        return shown


@dataclass
class Generation:
    """One answer: iterate over it for pieces of text, then read how it went.

    `finish_reason` is "end" (the model ended it), "stop" (a stop string), "length" (max_tokens) or "context"
    (the cache is full). Seconds are wall-clock; `first_token_seconds` begins with the prompt's evaluation.

    Raises (when iterated):
        EdgeError: the prompt does not fit into the context, or `chat` is asked of a model without a template.
    """

    engine: Engine
    prompt: str
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 256
    stop: Sequence[str] = ()
    chat: bool = False
    system: str | None = None
    document_start: str | None = None

    finish_reason: str = field(default="", init=False)
    prompt_tokens: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)
    first_token_seconds: float = field(default=0.0, init=False)
    decode_seconds: float = field(default=0.0, init=False)

    def __iter__(self) -> Iterator[str]:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must be 1 or more")
        prompt = self.prompt_ids()
        self.prompt_tokens = len(prompt)
        if len(prompt) >= self.engine.context_length:
            raise EdgeError(
                f"the prompt has {len(prompt):,} tokens, the context holds {self.engine.context_length:,}",
                "shorten the prompt, or ask for a longer context",
            )
        sampler = self.engine.sampler(self.sampling)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        stops = StopFilter(self.stop)
        try:
            for token in prompt[-self.sampling.repeat_last :] if self.sampling.repeat_last else []:
                sampler.accept(token)
            for token in self._tokens(prompt, sampler):
                text = stops.push(decoder.decode(self.engine.piece(token)))
                if text:
                    yield text
                if stops.stopped:
                    self.finish_reason = "stop"
                    return
            text = stops.push(decoder.decode(b"", final=True)) + stops.flush()
            if text:
                yield text
        finally:
            sampler.close()

    def _tokens(self, prompt: Sequence[int], sampler: Sampler) -> Iterator[int]:
        """Yield sampled tokens, evaluating each only when another one is wanted."""
        began = time.perf_counter()
        self.engine.reset()
        self.engine.eval(prompt)
        token = sampler.sample()
        first = time.perf_counter()
        self.first_token_seconds = first - began
        while not self.engine.is_end(token):
            self.tokens += 1
            self.decode_seconds = time.perf_counter() - first
            yield token
            if self.tokens >= self.max_tokens:
                self.finish_reason = "length"
                return
            if len(prompt) + self.tokens > self.engine.context_length:
                self.finish_reason = "context"
                return
            self.engine.eval([token])
            token = sampler.sample()
        self.finish_reason = "end"

    def stats(self) -> dict[str, float | int | str]:
        """How it went, JSON-able; tokens/s counts the tokens after the first one."""
        rate = (self.tokens - 1) / self.decode_seconds if self.tokens > 1 and self.decode_seconds else 0.0
        return {
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "first_token_ms": round(1000 * self.first_token_seconds, 3),
            "tokens_per_second": round(rate, 2),
        }

    def prompt_ids(self) -> list[int]:
        """The prompt's token ids: after the document start, or inside the chat template."""
        if self.chat:
            return self.engine.tokenize(self._chat_text(), special=True)
        return [self.engine.document_start(self.document_start), *self.engine.tokenize(self.prompt)]

    def _chat_text(self) -> str:
        template = self.engine.chat_template
        if not template:
            raise EdgeError("this model has no chat template", "run it without --chat")
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        messages: list[Any] = [{"role": "user", "content": self.prompt}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        start, end = self.engine.special_text("bos"), self.engine.special_text("eos")
        try:
            formatter = Jinja2ChatFormatter(template=template, bos_token=start, eos_token=end)
            text = str(formatter(messages=messages).prompt)
        except Exception as error:  # a template is foreign code and may raise anything
            raise EdgeError(f"the model's chat template failed ({error})", "run it without --chat") from error
        return start + text if self.engine.adds_start and not text.startswith(start) else text
