"""What OpenAI's clients send: what would change the answer is obeyed or refused, never silently ignored."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.generate.sampling import Sampling
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.fields import flag, known_fields, mapping, number
from minigpt_edge_runtime.serve.messages import Message, read_messages
from minigpt_edge_runtime.serve.structure import read_grammar, read_structure
from minigpt_edge_runtime.serve.tools import Tools, read_tools

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20  # likeliest tokens told for each token

# Names in a request -> names in Sampling; all but OpenAI's are llama.cpp's, one is vLLM's.
_SAMPLING: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "frequency_penalty": ("frequency_penalty", float),
    "presence_penalty": ("presence_penalty", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "repetition_penalty": ("repeat_penalty", float),
    "repeat_penalty": ("repeat_penalty", float),
}
# llama.cpp's samplers in the order that ours have, and what switches each of ours off.
_SAMPLERS: dict[str, dict[str, float]] = {
    "penalties": {"repeat_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0},
    "dry": {},
    "top_n_sigma": {},
    "top_k": {"top_k": 0},
    "typ_p": {},
    "top_p": {"top_p": 1},
    "min_p": {"min_p": 0},
    "xtc": {},
    "temperature": {"temperature": 1},
}
_STREAM_OPTIONS = ("include_usage", "include_obfuscation")
# What a template is given anyway.
_RESERVED = (
    *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("bos_token", "eos_token"),
)
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Chat:
    """A conversation and what its template is given besides.

    Attributes:
        arguments: further variables of the template.
        needed: those that the template has to use.
    """

    messages: list[Message]
    tools: Tools | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A checked request; either `chat` or `prompts` (each text, or token ids) is given.

    Attributes:
        reproducible: it has a seed, and wants the same answer whatever the server did before.
        choices: answers to each prompt.
        logprobs: likeliest tokens to tell for each token, None to tell nothing.
        rule: of the answer's JSON, in Lark; `rule_field` asks for it.
        grammar: of the answer, in GBNF.
    """

    sampling: Sampling
    reproducible: bool
    max_tokens: int
    stop: list[str]
    stream: bool
    include_usage: bool
    choices: int = 1
    logprobs: int | None = None
    echo: bool = False
    rule: str | None = None
    rule_field: str = "response_format"
    grammar: str | None = None
    prompts: list[str | list[int]] | None = None
    chat: Chat | None = None


def read_request(body: bytes, kind: str, model: str, max_tokens: int) -> Request:
    """Check a request's body.

    Args:
        body: JSON.
        kind: "completion" or "chat".
        model: the name of the model that is served.
        max_tokens: the most that is made, and what is made if nothing is asked for.

    Raises:
        ApiError: it is damaged, asks for what there is not, or has a value out of its range.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    given = known_fields(content, kind)
    if (asked := given.get("model") or model) != model:
        message = f"there is no model {asked!r}, this server has {model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    options = mapping(given.get("stream_options", {}), "stream_options")
    if foreign := [name for name, on in options.items() if name not in _STREAM_OPTIONS and on]:
        raise ApiError(400, f"stream_options may not have {foreign[0]!r}", param="stream_options")
    chat = _chat(given) if kind == "chat" else None
    rule_field, rule = read_structure(given)
    grammar = read_grammar(given)
    if grammar and chat and chat.tools:
        raise ApiError(400, "grammar is not possible beside tools", param="grammar")
    prompts = _prompts(given.get("prompt")) if kind == "completion" else None
    echo = flag(given, "echo")
    return Request(
        sampling=_sampling(given),
        reproducible=_seed(given) is not None or flag(given, "cache_prompt", True) is False,
        max_tokens=_limit(given, max_tokens, 0 if echo else 1),
        stop=_stop(given.get("stop", [])),
        stream=flag(given, "stream"),
        include_usage=flag(options, "include_usage"),
        choices=_choices(given, len(prompts or [0])),
        logprobs=_logprobs(given) if chat else _completion_logprobs(given),
        echo=echo,
        rule=rule,
        rule_field=rule_field,
        grammar=grammar,
        prompts=prompts,
        chat=chat,
    )


def _chat(given: Mapping[str, Any]) -> Chat:
    messages, tools = read_messages(given.get("messages")), read_tools(given)
    arguments = dict(mapping(given.get("chat_template_kwargs", {}), "chat_template_kwargs"))
    if reserved := [name for name in _RESERVED if name in arguments]:
        message = f"chat_template_kwargs may not have {reserved[0]!r}"
        raise ApiError(400, message, param="chat_template_kwargs")
    needed = []
    if effort := given.get("reasoning_effort"):
        if effort not in _EFFORTS:
            message = f"reasoning_effort is not one of {', '.join(_EFFORTS)}"
            raise ApiError(400, message, param="reasoning_effort")
        if effort != "none":
            needed.append("reasoning_effort")
            arguments["reasoning_effort"] = effort
        else:
            arguments.setdefault("enable_thinking", False)
    if "enable_thinking" in given:
        arguments["enable_thinking"] = flag(given, "enable_thinking")
        if arguments["enable_thinking"]:
            needed.append("enable_thinking")
    if flag(given, "continue_final_message"):
        arguments["continue_final_message"] = True
    elif not flag(given, "add_generation_prompt", True):
        message = "add_generation_prompt: false needs continue_final_message: true"
        raise ApiError(400, message, param="add_generation_prompt")
    if documents := given.get("documents"):
        if not isinstance(documents, list):
            raise ApiError(400, "documents is not a list", param="documents")
        needed.append("documents")
        arguments["documents"] = documents
    return Chat(messages, tools, arguments, tuple(needed))


def _limit(given: Mapping[str, Any], most: int, least: int) -> int:
    """The longest answer; finish_reason tells when it, or the server's own limit below it, was reached."""
    limit = most
    for name in ("max_tokens", "max_completion_tokens", "n_predict"):
        asked = number(given, name, int, -1)
        if asked == -1:  # llama.cpp's clients write it for no limit
            continue
        if asked < least:
            raise ApiError(400, f"{name} is {asked}, it must be {least} or more", param=name)
        limit = min(limit, asked)
    return limit


def _choices(given: Mapping[str, Any], prompts: int) -> int:
    choices = number(given, "n", int, 1)
    if not 1 <= choices * prompts <= MAX_CHOICES:
        raise ApiError(400, f"n is {choices}, it must be 1 to {MAX_CHOICES // prompts}", param="n")
    if number(given, "best_of", int, choices) not in (1, choices):
        raise ApiError(400, "best_of is not supported here, leave it out", param="best_of")
    return choices


def _logprobs(given: Mapping[str, Any]) -> int | None:
    wanted, top = flag(given, "logprobs"), number(given, "top_logprobs", int, 0)
    if not 0 <= top <= MAX_LOGPROBS:
        raise ApiError(400, f"top_logprobs is not 0 to {MAX_LOGPROBS}", param="top_logprobs")
    if top and not wanted:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return top if wanted else None


def _completion_logprobs(given: Mapping[str, Any]) -> int | None:
    if given.get("logprobs", False) is False:
        return None
    top = number(given, "logprobs", int, 0)
    if not 0 <= top <= MAX_LOGPROBS:
        raise ApiError(400, f"logprobs is not 0 to {MAX_LOGPROBS}", param="logprobs")
    return int(top)


def _sampling(given: Mapping[str, Any]) -> Sampling:
    settings: dict[str, Any] = {}
    for name, (setting, kind) in _SAMPLING.items():
        if name in given:
            value = number(given, name, kind, None)
            if name == "top_k" and value < 0:  # vLLM's and others' way to switch it off
                value = 0
            settings[setting] = _checked(name, setting, value)
    last = number(given, "repeat_last_n", int, 64)
    if "repeat_last_n" in given:  # -1 is llama.cpp's for all of them
        settings["repeat_last"] = _checked("repeat_last_n", "repeat_last", 2**31 if last == -1 else last)
    if "logit_bias" in given:
        settings["logit_bias"] = _checked("logit_bias", "logit_bias", _bias(given["logit_bias"]))
    seed = _seed(given)
    settings["seed"] = secrets.randbelow(2**32) if seed is None else _checked("seed", "seed", seed)
    return Sampling(**{**settings, **_samplers(given.get("samplers"))})


def _checked(name: str, setting: str, value: Any) -> Any:
    """A setting in its range; the error names the request's field."""
    try:
        Sampling(**{setting: value})
    except UsageError as error:
        raise ApiError(400, error.message, param=name) from error
    return value


def _seed(given: Mapping[str, Any]) -> int | None:
    """The seed, None if there is none: -1, and its unsigned form, are llama.cpp's for a random one."""
    seed = number(given, "seed", int, -1)
    return None if seed in (-1, 2**32 - 1) else int(seed)


def _samplers(value: Any) -> dict[str, float]:
    """What is switched off by a list of samplers, which must have the order that ours have."""
    if value is None:
        return {}
    names = value.split(";") if isinstance(value, str) else value
    rest = iter(_SAMPLERS)
    if not isinstance(names, list) or not all(name in rest for name in names):
        message = f"samplers must be some of {', '.join(_SAMPLERS)}, in this order"
        raise ApiError(400, message, param="samplers")
    return {key: off for name in _SAMPLERS if name not in names for key, off in _SAMPLERS[name].items()}


def _bias(value: Any) -> dict[int, float]:
    """Token ids and what is added to their logits, from OpenAI's object or llama.cpp's list of pairs."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    try:
        found = {int(token): -100.0 if bias is False else bias for token, bias in pairs}
    except (TypeError, ValueError) as error:
        raise ApiError(400, "logit_bias is not token ids and numbers", param="logit_bias") from error
    return {token: number({"logit_bias": bias}, "logit_bias", float, 0) for token, bias in found.items()}


def _stop(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ApiError(400, "stop is neither a text nor a list of texts", param="stop")
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop has {len(stops)} texts, {MAX_STOPS} are possible", param="stop")
    return stops


def _prompts(value: Any) -> list[str | list[int]]:
    prompts = value if isinstance(value, list) and value and type(value[0]) is not int else [value]
    if len(prompts) > MAX_CHOICES:
        raise ApiError(400, f"prompt is {len(prompts)} texts, {MAX_CHOICES} are possible", param="prompt")
    for prompt in prompts:
        ids = isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt)
        if not (isinstance(prompt, str) or ids):
            message = "prompt must be a text, a list of token ids, or a list of those"
            raise ApiError(400, message, param="prompt")
    return prompts
