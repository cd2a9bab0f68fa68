"""What OpenAI's clients expect to read: whole answers and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from minigpt_edge_runtime.generate.generate import Generation

FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
DONE = b"data: [DONE]\n\n"


class Reply:
    """The objects of one answer, all with the same id and time.

    Args:
        kind: "completion" or "chat".
        model: its name.
        with_usage: whether the stream ends with a chunk of token counts.
    """

    def __init__(self, kind: str, model: str, with_usage: bool) -> None:
        self._chat = kind == "chat"
        self._with_usage = with_usage
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._rest = {"created": int(time.time()), "model": model}

    def whole(self, text: str, generation: Generation) -> dict[str, Any]:
        """The answer in one object."""
        content = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        return self._object("", [self._choice(content, generation)], usage=usage(generation))

    def first(self) -> list[dict[str, Any]]:
        """What precedes the text in a stream: in a chat, who speaks."""
        return [self._chunk({"delta": {"role": "assistant", "content": ""}})] if self._chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """The chunk of some text."""
        return self._chunk({"delta": {"content": text}} if self._chat else {"text": text})

    def last(self, generation: Generation) -> list[dict[str, Any]]:
        """What follows the text in a stream: why it ended, and token counts if asked for."""
        chunks = [self._chunk({"delta": {}} if self._chat else {"text": ""}, generation)]
        if self._with_usage:
            chunks.append(self._object(".chunk", [], usage=usage(generation)))
        return chunks

    def _chunk(self, content: dict[str, Any], ended: Generation | None = None) -> dict[str, Any]:
        return self._object(
            ".chunk", [self._choice(content, ended)], **({"usage": None} if self._with_usage else {})
        )

    def _choice(self, content: dict[str, Any], ended: Generation | None) -> dict[str, Any]:
        reason = FINISH[ended.finish_reason] if ended else None
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _object(self, suffix: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._chat else "text_completion"
        return {"id": self._id, "object": kind, **self._rest, "choices": choices, **more}


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts; the token that ends an answer is not counted."""
    prompt = len(generation.prompt)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generation.tokens,
        "total_tokens": prompt + generation.tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def encode(content: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which a request may bring in, becomes "?"."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace")


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(content) + b"\n\n"
