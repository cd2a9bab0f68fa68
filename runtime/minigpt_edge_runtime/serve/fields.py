"""Which fields a request may have: those obeyed, those that change nothing, and those that ask for too much.

The names are OpenAI's, and those that the clients of llama.cpp's and vLLM's servers add.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_edge_runtime.serve.errors import ApiError

OBEYED = {
    *("model", "stop", "stream", "stream_options", "max_tokens", "n_predict", "n", "logprobs", "logit_bias"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty"),
    *("repeat_penalty", "repetition_penalty", "repeat_last_n", "samplers", "cache_prompt"),
    *("response_format", "json_schema", "grammar"),
}
OBEYED_BY = {
    "completion": {"prompt", "echo", "best_of"},
    "chat": {
        *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls"),
        *("documents", "chat_template_kwargs", "enable_thinking", "reasoning_effort"),
        *("continue_final_message", "add_generation_prompt"),
    },
}
# They change nothing in the answer of one model on one machine, whatever they say.
HARMLESS = frozenset(
    (
        # who asks, where, and what is kept of it
        *("user", "metadata", "store", "safety_identifier", "service_tier", "priority", "tags", "title"),
        *("id", "name", "timestamp", "request_id", "trace_id", "chat_id", "message_id", "session_id"),
        *("conversation_id", "parent_id", "user_id", "client", "source", "engine"),
        # caches and memory
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "id_slot", "cache_salt"),
        # a guess of the answer, which saves time and changes nothing
        "prediction",
        *("keep_alive", "n_keep", "n_discard"),
        # what is told beside the answer
        *("timings_per_token", "return_progress", "usage", "include_usage", "stream_interval"),
        # parts of samplers that are off
        *("mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "dry_base", "min_keep"),
        *("dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers", "adaptive_decay"),
        *("smoothing_curve", "backend_sampling", "guided_decoding_backend", "parallel_tool_calls"),
    )
)
_ASKS_EMPTY = ("prompt", "web_search_options")  # where an empty value is not nothing
# What this server does not do, and the values that do not ask for it.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "best_of": (1,),
    "echo": (False,),
    "top_logprobs": (0,),
    "function_call": ("none", "auto"),
    "tool_choice": ("none", "auto"),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "reasoning_effort": ("none",),
    "suffix": (),
    "functions": (),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
    # llama.cpp's
    "dynatemp_range": (0,),
    "xtc_probability": (0,),
    "typ_p": (1,),
    "typical_p": (1,),
    "top_n_sigma": (-1, 0),
    "dry_multiplier": (0,),
    "mirostat": (0,),
    "adaptive_target": (-1,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "n_indent": (0,),
    "ignore_eos": (False,),
    "return_tokens": (False,),
    "t_max_predict_ms": (0, -1),
    "t_max_prompt_ms": (0, -1),
    "reasoning_format": ("none", "auto"),
    "thinking_forced_open": (False,),
    "parse_tool_calls": (True,),
    "lora": (),
    # vLLM's and others'
    "min_tokens": (0,),
    "top_a": (0,),
    "tfs": (1,),
    "tfs_z": (1,),
    "smoothing_factor": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "add_special_tokens": (True, False),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "include_reasoning": (True, False),
    "separate_reasoning": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "prompt_logprobs": (),
    "think": (False,),
    "thinking_budget_tokens": (-1, 0),
    "thinking": ({"type": "disabled"},),
    "enable_thinking": (False,),
}


def known_fields(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The fields of a request that are obeyed; null, and an empty value, is the same as leaving one out.

    Args:
        kind: "completion" or "chat".

    Raises:
        ApiError: another field asks for something.
    """
    ours = OBEYED | OBEYED_BY[kind]
    found = {}
    for name, value in content.items():
        if value is None or (value in ("", [], {}) and name not in _ASKS_EMPTY):
            continue
        if name in ours:
            found[name] = value
        elif name not in HARMLESS:
            _check_neutral(name, value)
    return found


def _check_neutral(name: str, value: Any) -> None:
    if name not in _NEUTRAL:
        owner = next((kind for kind, names in OBEYED_BY.items() if name in names), None)
        hint = f", it belongs to {'chats' if owner == 'chat' else 'completions'}" if owner else ""
        raise ApiError(400, f"unknown parameter {name!r}{hint}", param=name, code="unknown_parameter")
    # Not `in`: 0 may ask for something where false does not, and Python holds them for equal.
    if not any(value == no and isinstance(value, bool) == isinstance(no, bool) for no in _NEUTRAL[name]):
        message = f"{name} {_short(value)} is not supported here, leave it out"
        raise ApiError(400, message, param=name, code="unsupported_parameter")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def number(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A field that is a number; whole ones may be written 5.0, as JSON of some languages is.

    Args:
        kind: int or float.

    Raises:
        ApiError: it is not one.
    """
    value = given.get(name, default)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise ApiError(400, f"{name} is not {wanted}", param=name)
    if kind is float and abs(value) > 1e300:  # a whole number may be larger than any float
        raise ApiError(400, f"{name} is too large", param=name)
    return value


def flag(given: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """A field that is true or false; ApiError if it is neither."""
    value = given.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} is neither true nor false", param=name)
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A field that is a JSON object; ApiError if it is not."""
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} is not an object", param=name)
    return value
