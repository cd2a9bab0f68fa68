"""Requests: what would change the answer is obeyed or refused, what would not is accepted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from source import ROOT

from minigpt_edge_runtime.generate.sampling import Sampling
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.fields import OBEYED, OBEYED_BY
from minigpt_edge_runtime.serve.request import Request, read_request

ASK = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def unseeded(request: Request) -> Sampling:
    """Its sampling, but for a seed that may be drawn."""
    return replace(request.sampling, seed=0)


def read(kind: str = "chat", **fields: Any) -> Request:
    content = {"messages": ASK} if kind == "chat" else {"prompt": "Hi"}
    return read_request(json.dumps({**content, **fields}).encode(), kind, "tiny", 100)


def messages_of(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    chat = read(messages=messages).chat
    assert chat
    return chat.messages


def test_defaults_are_those_of_sampling() -> None:
    request = read()
    assert unseeded(request) == Sampling() and request.max_tokens == 100 and request.stop == []
    assert request.chat and request.chat.messages == ASK and request.prompts is None
    assert (request.choices, request.logprobs, request.stream, request.reproducible) == (
        1,
        None,
        False,
        False,
    )


def test_fields_are_obeyed() -> None:
    settings = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 2**40,
        "frequency_penalty": -0.5,
        "presence_penalty": 2,
    }
    request = read(
        **settings,
        model="tiny",
        max_completion_tokens=7,
        stop="END",
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        n=3,
        logprobs=True,
        top_logprobs=4,
        logit_bias={"5": -100, "6": 2.5},
        repeat_last_n=9,
    )
    expected = Sampling(**settings, logit_bias={5: -100, 6: 2.5}, repeat_last=9)  # type: ignore[arg-type]
    assert request.sampling == expected and request.reproducible
    assert (request.max_tokens, request.stop, request.stream) == (7, ["END"], True)
    assert (request.include_usage, request.choices, request.logprobs) == (True, 3, 4)
    assert read(stop=["a", "b"]).stop == ["a", "b"] and read(stop=None).stop == [] == read(stop="").stop
    assert read(logprobs=True).logprobs == 0 == read("completion", logprobs=0).logprobs
    assert read("completion", logprobs=5, echo=True, max_tokens=0).max_tokens == 0


def test_other_servers_ways_to_say_it() -> None:
    assert unseeded(read(top_k=-1, repetition_penalty=1.3)) == Sampling(top_k=0, repeat_penalty=1.3)
    assert read(logit_bias=[[5, 1], [6, False]]).sampling.logit_bias == {5: 1, 6: -100}
    assert read(max_tokens=-1, n_predict=7.0).max_tokens == 7 and read(cache_prompt=False).reproducible
    everything = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
    assert unseeded(read(samplers=everything, top_k=3)) == Sampling(top_k=3)
    assert unseeded(read(samplers="top_k;temperature")) == Sampling(top_p=1, min_p=0, repeat_penalty=1)


@pytest.mark.parametrize("fields", [{}, {"seed": None}, {"seed": -1}, {"seed": 2**32 - 1}], ids=str)
def test_without_a_seed_one_is_drawn(fields: dict[str, Any]) -> None:
    """What asks again wants another answer, and says nothing about being the same again."""
    assert read(**fields).sampling.seed != read(**fields).sampling.seed
    assert not read(**fields).reproducible and read(seed=0).sampling.seed == 0


def test_a_limit_above_the_servers_is_the_servers() -> None:
    """Editors ask for thousands of tokens by default; finish_reason says that fewer were possible."""
    assert read(max_tokens=4096).max_tokens == 100 == read(max_completion_tokens=101).max_tokens
    assert read(max_tokens=5, max_completion_tokens=9).max_tokens == 5


def test_prompts_are_text_or_token_ids() -> None:
    assert read("completion").prompts == ["Hi"] and read("completion", prompt="").prompts == [""]
    assert read("completion", prompt=["Hi", "Ho"]).prompts == ["Hi", "Ho"]
    assert read("completion", prompt=[5, 6]).prompts == [[5, 6]]
    assert read("completion", prompt=[[5, 6], [7]]).prompts == [[5, 6], [7]]


def test_messages_become_plain() -> None:
    called = {"name": "f", "arguments": {"a": 1}}
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    assert messages_of(
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": parts, "name": "Ann", "id": 1947, "opts": {"visible": False}},
        {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": [], "timestamp": "2025"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "annotations": []},
        {"role": "tool", "content": "42", "tool_call_id": "c1", "metadata": {"x": 1}},
        {"role": "assistant", "content": None, "refusal": "No"},
        {"role": "function", "content": None, "name": "f"},
    ) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "ab", "name": "Ann"},
        {"role": "assistant", "content": "ok"},
        {"role": "assistant", "content": "", "tool_calls": [{**CALL, "function": called}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "No"},
        {"role": "tool", "content": "", "name": "f"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "logprobs": False, "top_logprobs": None, "tools": [], "tool_choice": "none", "user": "me"},
        {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "safety_identifier": "x"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "parallel_tool_calls": True},
        {"verbosity": "medium", "reasoning_effort": "none", "modalities": ["text"], "functions": []},
        {"prediction": {"type": "content", "content": "x"}},
        {"stream_options": {"include_usage": None, "include_obfuscation": True}, "audio": None},
        {"response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0.0},
        {"cache_prompt": True, "id_slot": 0, "timings_per_token": True, "return_progress": True},
        {"dynatemp_range": 0, "dynatemp_exponent": 1, "xtc_probability": 0, "xtc_threshold": 0.1},
        {"typ_p": 1, "dry_multiplier": 0.0, "dry_base": 1.75, "mirostat": 0, "n_probs": 0, "lora": []},
        {"top_n_sigma": -1, "reasoning_format": "auto", "ignore_eos": False, "grammar": "", "samplers": []},
        {"min_tokens": 0, "use_beam_search": False, "skip_special_tokens": True, "stop_token_ids": []},
        {"chat_template_kwargs": {"anything": 1}, "enable_thinking": False, "timestamp": 5, "chat_id": "x"},
        {"response_format": {}, "json_schema": {}, "tool_choice": "", "stop": [], "logprobs": None},
        {"keep_alive": "5m", "tools": [TOOL], "tool_choice": "none", "seed": None, "made_up": None},
    ],
    ids=str,
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    plain, request = read(), read(**fields)
    assert request.chat and request.chat.tools is None and request.chat.needed == ()
    assert (unseeded(request), request.rule, request.grammar) == (unseeded(plain), None, None)
    assert (request.choices, request.logprobs, request.stop) == (1, None, [])


def test_the_readme_names_every_field_that_is_obeyed() -> None:
    text = (ROOT / "runtime" / "README.md").read_text()
    fields = OBEYED.union(*OBEYED_BY.values()) - {"model"}
    assert [name for name in sorted(fields) if not re.search(f"`{name}[`:.]", text)] == []


def test_completions_say_what_they_do_not_want() -> None:
    request = read("completion", n=1, best_of=1, echo=False, logprobs=None, logit_bias={}, suffix="")
    assert (request.choices, request.echo, request.logprobs) == (1, False, None)


def test_tools_and_choices() -> None:
    def tools(**fields: Any) -> Any:
        chat = read(tools=[TOOL, {"type": "function", "function": {"name": "g"}}], **fields).chat
        assert chat
        return chat.tools

    free = tools()
    assert [tool.name for tool in free.all] == ["f", "g"] and free.allowed == free.all and free.several
    assert not free.bound and not tools(parallel_tool_calls=False).several
    assert tools(tool_choice="required").required and tools(tool_choice="required").bound
    named = tools(tool_choice={"type": "function", "function": {"name": "g"}})
    assert [tool.name for tool in named.allowed] == ["g"] and named.required
    assert named.allowed[0].parameters["additionalProperties"] is False  # a function without arguments
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    some = tools(tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert some.bound and not some.required and [tool.name for tool in some.allowed] == ["f"]


SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logprobs": 5}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0]"),
        ({"tools": 5}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "f"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": SCHEMA, "grammar": 'root ::= "a"'}, "response_format"),
        ({"grammar": 'root ::= "a"', "tools": [TOOL]}, "grammar"),
        ({"grammar": 5}, "grammar"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"logit_bias": {"the": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": float("nan")}}, "logit_bias"),
        ({"logit_bias": 5}, "logit_bias"),
        ({"mirostat": 2}, "mirostat"),
        ({"samplers": ["temperature", "top_k"]}, "samplers"),
        ({"samplers": 5}, "samplers"),
        ({"xtc_probability": 0.5}, "xtc_probability"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"verbosity": "high"}, "verbosity"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"bos_token": ""}}, "chat_template_kwargs"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"documents": "x"}, "documents"),
        ({"made_up": 1}, "made_up"),
        ({"prompt": "x"}, "prompt"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"stream": 1}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"repeat_last_n": 10**30}, "repeat_last_n"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": -2}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]"),
        ({"messages": [*ASK, {"role": "user"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0]"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0]",
        ),
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
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"tools": [TOOL]}, "tools"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [5, "x"]}, "prompt"),
        ({"prompt": ["x", 5]}, "prompt"),
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
