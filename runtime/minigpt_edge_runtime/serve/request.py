"""What OpenAI's clients send: every field is either obeyed or refused, none is silently ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.generate.sampling import Sampling

MAX_STOPS = 16
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_SAMPLING = {
    "temperature": float,
    "top_p": float,
    "seed": int,
    "top_k": int,  # this and the following as llama.cpp's server has them
    "min_p": float,
    "repeat_penalty": float,
}
_OURS = {"model", "stop", "stream", "stream_options", "max_tokens", *_SAMPLING}
_OWN = {"completion": {"prompt"}, "chat": {"messages", "max_completion_tokens"}}
# They change nothing in the answer of one model on one machine.
_HARMLESS = {
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "service_tier",
    "parallel_tool_calls",
}
# What this server can't do, and the values, beside null, by which a client says that it does not want it.
_UNWANTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
}


class ApiError(Exception):
    """An answer that is OpenAI's error object.

    Args:
        status: HTTP's.
        message: what is wrong.
        param: the field that is.
        code: a name for programs.
        kind: OpenAI's `type`.
        headers: further HTTP headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Request:
    """A checked request; either `messages` or `prompt` (text, or token ids) is given.

    `reproducible`: it has a seed, and wants the same answer whatever the server did before.
    """

    sampling: Sampling
    reproducible: bool
    max_tokens: int
    stop: list[str]
    stream: bool
    include_usage: bool
    prompt: str | list[int] | None = None
    messages: list[dict[str, str]] | None = None


def read_request(body: bytes, kind: str, model: str, max_tokens: int) -> Request:
    """Check a request's body.

    Args:
        body: JSON.
        kind: "completion" or "chat".
        model: the name of the model that is served.
        max_tokens: the most that may be asked for, and what is made if nothing is asked for.

    Raises:
        ApiError: it is damaged, asks for what there is not, or has a value out of its range.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    given = {name: value for name, value in content.items() if value is not None}
    _check_names(given, _OURS | _OWN[kind])
    if given.get("model", model) != model:
        message = f"there is no model {given['model']!r}, this server has {model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if {"max_tokens", "max_completion_tokens"} <= set(given):
        raise ApiError(400, "give max_tokens or max_completion_tokens, not both", param="max_tokens")
    limit_name = "max_completion_tokens" if "max_completion_tokens" in given else "max_tokens"
    asked = _number(given, limit_name, int, max_tokens)
    if not 1 <= asked <= max_tokens:
        message = f"{limit_name} is {asked}, this server makes 1 to {max_tokens:,} tokens"
        raise ApiError(400, message, param=limit_name)
    stream = _flag(given, "stream")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"}:
        raise ApiError(400, "stream_options may hold include_usage alone", param="stream_options")
    if options and not stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    return Request(
        sampling=_sampling(given),
        reproducible="seed" in given,
        max_tokens=asked,
        stop=_stop(given.get("stop", [])),
        stream=stream,
        include_usage=_flag(options, "include_usage"),
        prompt=_prompt(given.get("prompt")) if kind == "completion" else None,
        messages=_messages(given.get("messages")) if kind == "chat" else None,
    )


def _check_names(given: Mapping[str, Any], known: set[str]) -> None:
    for name, value in given.items():
        if name in known or name in _HARMLESS:
            continue
        if name not in _UNWANTED:
            raise ApiError(400, f"unknown parameter {name!r}", param=name, code="unknown_parameter")
        # Not `in`: logprobs 0 asks for something, logprobs false does not, and Python holds them for equal.
        if not any(value == no and isinstance(value, bool) == isinstance(no, bool) for no in _UNWANTED[name]):
            message = f"{name} is not supported here, leave it out"
            raise ApiError(400, message, param=name, code="unsupported_parameter")


def _sampling(given: Mapping[str, Any]) -> Sampling:
    settings = {name: _number(given, name, kind, None) for name, kind in _SAMPLING.items() if name in given}
    for name, value in settings.items():  # one at a time, so that the error can name it
        try:
            Sampling(**{name: value})
        except UsageError as error:
            raise ApiError(400, error.message, param=name) from error
    return Sampling(**settings)


def _number(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise ApiError(400, f"{name} is not {wanted}", param=name)
    return value


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name) or False
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is neither true nor false", param=name)
    return value


def _stop(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(400, "stop is neither a text nor a list of texts", param="stop")
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop has {len(stops)} texts, {MAX_STOPS} are possible", param="stop")
    return stops


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return value
    message = "prompt must be one text, or one list of token ids (one request, one prompt)"
    raise ApiError(400, message, param="prompt")


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list of messages, at least one", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise ApiError(400, f"{where} must have a role of {', '.join(ROLES)}", param=where)
    more = [name for name, given in value.items() if given and name not in ("role", "content", "name")]
    if more:
        raise ApiError(400, f"{where} has {more[0]!r}, only role, content and name are possible", param=where)
    content = value.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ApiError(400, f"{where} must have a text as its content", param=where)
    name = value.get("name")
    return {"role": ROLES[value["role"]], "content": content, **({"name": str(name)} if name else {})}


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ApiError(400, f"{where} has content that is not text", param=where)
