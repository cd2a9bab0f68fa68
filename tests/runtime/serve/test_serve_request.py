"""Requests: each field obeyed or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minigpt_edge_runtime.generate.sampling import Sampling
from minigpt_edge_runtime.serve.request import ApiError, read_request

ASK = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def read(kind: str = "chat", **fields: Any) -> Any:
    content = {"messages": ASK} if kind == "chat" else {"prompt": "Hi"}
    return read_request(json.dumps({**content, **fields}).encode(), kind, "tiny", 100)


def test_defaults_are_those_of_sampling() -> None:
    request = read()
    assert request.sampling == Sampling() and request.max_tokens == 100 and request.stop == []
    assert (
        not request.stream and not request.reproducible and request.messages == ASK and request.prompt is None
    )


def test_fields_are_obeyed() -> None:
    settings = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 2**40,
    }
    request = read(
        **settings,
        model="tiny",
        max_completion_tokens=7,
        stop="END",
        stream=True,
        stream_options={"include_usage": True},
    )
    assert request.sampling == Sampling(**settings)  # type: ignore[arg-type]
    assert request.reproducible
    assert (request.max_tokens, request.stop, request.stream, request.include_usage) == (
        7,
        ["END"],
        True,
        True,
    )
    assert read(stop=["a", "b"]).stop == ["a", "b"] and read(stop=None).stop == []


def test_prompts_are_text_or_token_ids() -> None:
    assert read("completion").prompt == "Hi" and read("completion", prompt="").prompt == ""
    assert read("completion", prompt=["Hi"]).prompt == "Hi"
    assert read("completion", prompt=[5, 6]).prompt == [5, 6] == read("completion", prompt=[[5, 6]]).prompt


def test_messages_become_plain() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": parts, "name": "Ann"},
        {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": []},
    ]
    assert read(messages=messages).messages == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": "ok"},
    ]


def test_what_is_not_wanted_may_be_said() -> None:
    read(
        n=1, logprobs=False, top_logprobs=None, tools=[], tool_choice="none", presence_penalty=0.0, user="me"
    )
    read("completion", n=1, best_of=1, echo=False, logprobs=None, logit_bias={}, suffix=None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [TOOL]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"mirostat": 2}, "mirostat"),
        ({"prompt": "x"}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [*ASK, {"role": "user"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [TOOL]}]}, "messages[0]"),
    ],
    ids=str,
)
def test_the_rest_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400 and caught.value.body["error"]["param"] == param
    assert caught.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 0}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, "x"]}, "prompt"),
        ({"messages": ASK}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
    ids=str,
)
def test_completions_have_their_own_fields(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read("completion", **fields)
    assert caught.value.status == 400 and caught.value.body["error"]["param"] == param


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 9000 + b"}"]
)
def test_a_body_that_is_no_json_object(body: bytes) -> None:
    with pytest.raises(ApiError, match="the body is not"):
        read_request(body, "chat", "tiny", 100)


def test_another_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="there is no model 'gpt-4', this server has 'tiny'") as caught:
        read(model="gpt-4")
    assert caught.value.status == 404 and caught.value.body["error"]["code"] == "model_not_found"
