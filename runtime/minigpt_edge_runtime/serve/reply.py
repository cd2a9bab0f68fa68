"""What OpenAI's clients expect to read: whole answers and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.generate.logprobs import TokenLogprob
from minigpt_edge_runtime.serve.choice import Choice
from minigpt_edge_runtime.serve.request import Request
from minigpt_edge_runtime.serve.tool_calls import Call

FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}
DONE = b"data: [DONE]\n\n"


class Reply:
    """The objects of one answer, all with the same id and time.

    Args:
        model: its name.
        engine: whose tokens logprobs name.
        request: what is answered.
    """

    def __init__(self, model: str, engine: Engine, request: Request) -> None:
        self._chat, self._engine = request.chat is not None, engine
        self._with_usage, self._choices = request.include_usage, request.choices
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._rest = {"created": int(time.time()), "model": model}

    def whole(self, choices: Sequence[tuple[Choice, str]]) -> dict[str, Any]:
        """The answer in one object, from ended choices and their texts."""
        made = [self._choice(choice, self._message(choice, text), True) for choice, text in choices]
        return self._object("", made, usage=self._usage([choice for choice, _ in choices]))

    def _message(self, choice: Choice, text: str) -> dict[str, Any]:
        if not self._chat:
            return {"text": text}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in choice.calls]}
        return {"message": message}

    def first(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """What precedes all texts in a stream: in a chat, who speaks."""
        start = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk([self._plain(choice, start)]) for choice in choices] if self._chat else []

    def piece(self, choice: Choice, text: str) -> dict[str, Any]:
        """The chunk of some text."""
        return self._chunk([self._choice(choice, self._text(text))])

    def last(self, choice: Choice, rest: str) -> list[dict[str, Any]]:
        """What ends a choice in a stream: the rest of its text, calls, and why it ended."""
        contents = [self._text(rest)] if rest else []
        if choice.calls:
            calls = [{"index": at, **_call(call)} for at, call in enumerate(choice.calls)]
            contents.append({"delta": {"tool_calls": calls}})
        chunks = [self._chunk([self._choice(choice, content)]) for content in contents]
        end: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return [*chunks, self._chunk([self._choice(choice, end, True)])]

    def counts(self, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """What ends a stream: token counts if asked for."""
        return [self._object(".chunk", [], usage=self._usage(choices))] if self._with_usage else []

    def _usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """Token counts, a prompt's once for all its choices; the token that ends an answer is not counted."""
        made = [choice.generation for choice in choices]
        asked = made[:: self._choices]
        prompt, said = sum(len(one.prompt) for one in asked), sum(one.tokens for one in made)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in asked)},
        }

    def _text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self._chat else {"text": text}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._object(".chunk", choices, **({"usage": None} if self._with_usage else {}))

    def _choice(self, choice: Choice, content: dict[str, Any], ended: bool = False) -> dict[str, Any]:
        """A choice with the logprobs of what it has said since the last one."""
        plain = self._plain(choice, content)
        if choice.generation.logprobs is not None:
            plain["logprobs"] = self._logprobs(choice, ended)
        if ended:
            reason = FINISH[choice.generation.finish_reason]
            plain["finish_reason"] = "tool_calls" if choice.calls else reason
        return plain

    def _plain(self, choice: Choice, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": choice.index, **content, "logprobs": None, "finish_reason": None}

    def _object(self, suffix: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._chat else "text_completion"
        return {"id": self._id, "object": kind, **self._rest, "choices": choices, **more}

    def _logprobs(self, choice: Choice, ended: bool) -> dict[str, Any]:
        asked, said = choice.logprobs(ended)
        if self._chat:
            return {"content": [self._chat_token(token) for token in said], "refusal": None}
        told = [*asked, *said]
        offsets = [0] * len(asked) + [len(choice.echo)] * len(said)
        return {
            "tokens": [self._name(one.token) for one in told],
            "token_logprobs": [one.logprob for one in told],
            "top_logprobs": [
                {self._name(token): value for token, value in reversed(one.top)} if one.top else None
                for one in told
            ],
            "text_offset": [one.start + offset for one, offset in zip(told, offsets, strict=True)],
        }

    def _chat_token(self, one: TokenLogprob) -> dict[str, Any]:
        top = [self._entry(token, value) for token, value in one.top]
        return {**self._entry(one.token, one.logprob), "top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        data = self._bytes(token)
        return {"token": _written(data), "logprob": logprob, "bytes": list(data)}

    def _name(self, token: int) -> str:
        """A token as completions write it."""
        return _written(self._bytes(token), "bytes:")

    def _bytes(self, token: int) -> bytes:
        return self._engine.piece(token) or self._engine.detokenize([token], special=True)


def _written(data: bytes, sign: str = "") -> str:
    """A token's text; the bytes of one that is part of a character as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return sign + "".join(f"\\x{byte:02x}" for byte in data)


def _call(call: Call) -> dict[str, Any]:
    # Nine letters and digits are what Mistral's templates ask for.
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": uuid.uuid4().hex[:9], "type": "function", "function": function}


def encode(content: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which a request may bring in, becomes "?"."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace")


def event(content: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(content) + b"\n\n"
