"""What real clients ask for, by the real openai client, of both engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import openai
import pytest
from serving import Server, serving
from tiny_gguf import TOOLS_TEMPLATE, chain_model, make_gguf, make_tokenizer
from tiny_onnx import make_onnx
from tokenizers import AddedToken, Tokenizer

from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.generate.generate import Session
from minigpt_edge_runtime.generate.grammar import Grammars
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.plan import make_plans
from minigpt_edge_runtime.serve.request import read_request

pytestmark = pytest.mark.whole

ASK: list[Any] = [{"role": "user", "content": "Hi"}]
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "city": {"enum": ["Bonn", "Rom"]},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 1, "maxItems": 2},
        "hot": {"type": ["boolean", "null"]},
    },
    "required": ["city", "days", "hot"],
    "additionalProperties": False,
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
OTHER: Any = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def model_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    model = make_gguf(folder / "tiny.gguf", tokenizer, chat_template=TOOLS_TEMPLATE)
    return model if request.param == "gguf" else make_onnx(model, folder / "tiny", tokenizer)


@pytest.fixture(scope="module")
def server(model_file: Path) -> Iterator[Server]:
    with serving(model_file, "--max-tokens", 300) as server:
        yield server


def chat(server: Server, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": "tiny", "messages": ASK, "seed": 1, "temperature": 1.5, **fields}
    return server.openai.chat.completions.create(**given)


def complete(server: Server, **fields: Any) -> Any:
    return server.openai.completions.create(**{"model": "tiny", "prompt": "Hi", "seed": 1, **fields})


def test_fields_that_change_nothing_change_nothing(server: Server) -> None:
    plain = chat(server, max_tokens=8)
    editors = [{**ASK[0], "id": 1947, "name": "Ann", "timestamp": "2025-01-01", "metadata": {"a": 1}}]
    extra = {"cache_prompt": True, "id_slot": 0, "samplers": None, "timings_per_token": True}
    said = chat(
        server,
        messages=editors,
        max_tokens=8,
        user="me",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        reasoning_effort="none",
        verbosity="medium",
        parallel_tool_calls=True,
        tools=[],
        extra_body=extra,
    )
    assert said.choices == plain.choices and said.choices[0].message.content


def test_several_choices(server: Server) -> None:
    whole = chat(server, n=3, max_tokens=8)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3 and texts[0] == chat(server, max_tokens=8).choices[0].message.content
    assert texts == [choice.message.content for choice in chat(server, n=3, max_tokens=8).choices]
    usage = chat(server, max_tokens=8).usage
    assert whole.usage.prompt_tokens == usage.prompt_tokens and whole.usage.completion_tokens <= 24
    heard, ends = ["", "", ""], []
    *chunks, last = chat(server, n=3, max_tokens=8, stream=True, stream_options={"include_usage": True})
    for chunk in chunks:
        (choice,) = chunk.choices
        heard[choice.index] += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert heard == texts and last.usage == whole.usage
    assert ends == [choice.finish_reason for choice in whole.choices]


def test_asked_again_without_a_seed_it_says_something_else(server: Server) -> None:
    texts = [chat(server, max_tokens=20, seed=None).choices[0].message.content for _ in range(3)]
    assert len(set(texts)) > 1


def test_several_prompts(server: Server) -> None:
    made = complete(server, prompt=["The", "copies of"], n=2, max_tokens=6)
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    alone = complete(server, prompt="copies of", n=2, max_tokens=6)
    assert [c.text for c in made.choices[2:]] == [c.text for c in alone.choices]


def test_an_answer_goes_on_with_a_last_message(server: Server, model_file: Path) -> None:
    begun = [*ASK, {"role": "assistant", "content": "The software"}]
    going_on = {"continue_final_message": True, "add_generation_prompt": False}
    said = chat(server, messages=begun, extra_body=going_on, max_tokens=6, temperature=0).choices[0]
    with open_engine(model_file, 64, 1) as engine:
        text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nThe software"
        ids = engine.tokenize(text, special=True)
    assert said.message.content == complete(server, prompt=ids, max_tokens=6, temperature=0).choices[0].text


def test_logprobs_of_a_chat(server: Server) -> None:
    asked: dict[str, Any] = {"max_tokens": 12, "logprobs": True, "top_logprobs": 3}
    whole = chat(server, **asked).choices[0]
    tokens = whole.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == whole.message.content
    assert all(len(token.top_logprobs) == 3 and token.logprob < 0 for token in tokens)
    assert all(token.top_logprobs[0].logprob >= max(token.logprob, -20) for token in tokens)
    heard = [
        token
        for chunk in chat(server, stream=True, **asked)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert heard == tokens
    # They are the model's, whatever the sampler makes of them.
    changed = chat(server, **asked, logit_bias={"5": 100}, frequency_penalty=2).choices[0].logprobs.content
    assert changed[0].top_logprobs == tokens[0].top_logprobs and changed[0].token != tokens[0].token
    assert chat(server, max_tokens=2).choices[0].logprobs is None


def test_logprobs_of_a_prompt_are_the_models(server: Server, model_file: Path) -> None:
    ids = [5, 60, 300, 7, 8, 250]
    made = complete(server, prompt=ids, echo=True, logprobs=2, max_tokens=0)
    with open_engine(model_file, 64, 1, logits_all=True) as engine:
        logits = engine.logits(ids).astype(np.float64)
        text = engine.detokenize(ids).decode(errors="replace")
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    (choice,) = made.choices
    assert (choice.text, choice.finish_reason) == (text, "length") and made.usage.completion_tokens == 0
    found = choice.logprobs
    assert found.token_logprobs[0] is None and len(found.tokens) == 6
    np.testing.assert_allclose(
        found.token_logprobs[1:], [expected[at, token] for at, token in enumerate(ids[1:])], atol=1e-3
    )
    best = [max(one.values()) for one in found.top_logprobs[1:]]
    np.testing.assert_allclose(best, expected[:-1].max(axis=1), atol=1e-3)


def test_offsets_are_of_the_text(server: Server) -> None:
    (choice,) = complete(server, prompt="The software", echo=True, logprobs=0, max_tokens=5).choices
    assert choice.text.startswith("The software") and len(choice.logprobs.tokens) > 5
    for token, start in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert token.startswith("bytes:") or choice.text[start:].startswith(token)
    (plain,) = complete(server, prompt="The software", logprobs=0, max_tokens=5).choices
    assert "The software" + plain.text == choice.text and plain.logprobs.text_offset[0] == 0
    assert plain.logprobs.tokens == choice.logprobs.tokens[-len(plain.logprobs.tokens) :]


def test_a_stop_cuts_logprobs_too(server: Server) -> None:
    asked = {"logprobs": True, "extra_body": {"grammar": "root ::= [a-z]{40}"}}
    whole = chat(server, **asked).choices[0]
    told, said = whole.logprobs.content, whole.message.content
    assert "".join(token.token for token in told) == said and len(said) == 40
    stop = said[4:7]
    assert said.index(stop) == 4
    kept = [token for at, token in enumerate(told) if len("".join(t.token for t in told[:at])) < 4]
    for streams in (False, True):
        made = chat(server, stop=[stop], stream=streams, **asked)
        choices = [chunk.choices[0] for chunk in made] if streams else made.choices
        heard = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        assert heard == kept and choices[-1].finish_reason == "stop"


def form(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def test_json_under_a_schema(server: Server) -> None:
    made = chat(server, n=3, response_format=form(SCHEMA, strict=True))
    for choice in made.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    stream = chat(server, stream=True, response_format=form(SCHEMA))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == made.choices[0].message.content
    short = {"type": "json_object", "schema": {"type": "object", "properties": {"a": {"const": 1}}}}
    short["schema"] |= {"required": ["a"], "additionalProperties": False}  # type: ignore[operator]
    assert json.loads(complete(server, extra_body={"response_format": short}).choices[0].text) == {"a": 1}
    made = chat(server, max_tokens=20, response_format={"type": "json_object"}).choices[0]
    assert made.message.content.startswith("{") and made.finish_reason in ("length", "stop")


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "object", "not": {"required": ["a"]}}, r'response_format: .*"not"'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "made-up"}, "made-up"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"type": "string", "pattern": "(?=a)b"}, "look"),
    ],
)
def test_what_a_grammar_can_not_do_is_refused(server: Server, schema: Any, what: str) -> None:
    with pytest.raises(openai.BadRequestError, match=what) as caught:
        chat(server, response_format=form(schema))
    assert caught.value.param == "response_format" and "x-guidance" not in caught.value.message


def test_a_grammar_too_large_is_the_clients_error(server: Server) -> None:
    endless = {"type": "string", "pattern": "^((a?){50}a{50}){50}$"}
    for stream in (False, True):
        with pytest.raises(openai.APIError, match="grammar can't go on") as caught:
            list(chat(server, stream=stream, response_format=form(endless)))
        assert caught.value.code == "grammar"
    assert chat(server, max_tokens=1).choices


def test_a_grammar_of_llama_cpps(server: Server) -> None:
    grammar = {"grammar": 'root ::= ("yes" | "no") " " [0-9]{2}'}
    text = complete(server, extra_body=grammar).choices[0].text
    assert text.split()[0] in ("yes", "no") and text[-2:].isdigit()
    with pytest.raises(openai.BadRequestError, match="grammar can't be read"):
        complete(server, extra_body={"grammar": "rooot"})


def test_what_is_missing_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with open_engine(model, 64, 1) as engine:
        for fields in ({"json_schema": SCHEMA}, {"grammar": 'root ::= "a"'}):
            request = read_request(json.dumps({"messages": ASK, **fields}).encode(), "chat", "tiny", 9)
            with pytest.raises(ApiError, match=r"minigpt-edge-runtime\[grammar\]") as caught:
                make_plans(Session(engine), Grammars(engine), request, None)
            assert (caught.value.status, caught.value.body["error"]["param"]) == (400, next(iter(fields)))


def arguments_of(choice: Any) -> tuple[str, Any]:
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    return call.function.name, json.loads(call.function.arguments)


def test_a_required_call(server: Server) -> None:
    tools = [TOOL, OTHER]
    made = chat(server, tools=tools, tool_choice="required", n=3)
    names = set()
    for choice in made.choices:
        name, arguments = arguments_of(choice)
        jsonschema.validate(arguments, SCHEMA if name == "weather" else {"const": {}})
        names.add(name)
    assert names <= {"weather", "now"}
    named = {"type": "function", "function": {"name": "weather"}}
    whole = chat(server, tools=tools, tool_choice=named).choices[0]
    parts = [chunk.choices[0] for chunk in chat(server, tools=tools, tool_choice=named, stream=True)]
    (call,) = [call for part in parts for call in part.delta.tool_calls or []]
    assert call.index == 0 and call.function.name == "weather" and parts[-1].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == arguments_of(whole)[1]
    history = [*ASK, whole.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = chat(server, messages=history, tools=tools, max_tokens=3)
    assert again.usage.prompt_tokens > chat(server, tools=tools, max_tokens=3).usage.prompt_tokens
    assert (
        chat(server, tools=tools, tool_choice="none", max_tokens=4).choices
        == chat(server, max_tokens=4).choices
    )


def test_text_or_a_strict_call(server: Server) -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    made = chat(server, tools=[strict], max_tokens=10, temperature=0.5).choices[0]
    assert made.message.content or made.message.tool_calls
    either = chat(server, tools=[TOOL], response_format=form({"enum": ["a"]})).choices[0]
    assert either.message.content == '"a"' or arguments_of(either)[0] == "weather"


SAID = ("Let me see. ", "<tool_call>", '\n{"name": "now", "arguments": ', '{"zone": "é"}}\n', "</tool_call>")


def test_calls_that_a_model_makes_by_itself(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in SAID])
    ids = [tokenizer.encode("assistant\n").ids[-1], *map(tokenizer.token_to_id, SAID), 2]
    model = chain_model(tmp_path / "tiny.gguf", tokenizer, ids, chat_template=TOOLS_TEMPLATE)
    greedy: dict[str, Any] = {"temperature": 0, "extra_body": {"repeat_penalty": 1}}
    with serving(model) as server:
        for strict in (False, True):
            function = {"name": "now", "parameters": {"type": "object"}, "strict": strict}
            tools = [{"type": "function", "function": function}]
            made = chat(server, tools=tools, **greedy).choices[0]
            assert (made.message.content, made.finish_reason) == (SAID[0], "tool_calls")
            assert json.loads(made.message.tool_calls[0].function.arguments) == {"zone": "é"}
            parts = [chunk.choices[0].delta for chunk in chat(server, tools=tools, stream=True, **greedy)]
            assert "".join(part.content or "" for part in parts) == SAID[0]
            (call,) = [call for part in parts for call in part.tool_calls or []]
            assert (call.function.name, call.function.arguments) == ("now", '{"zone": "é"}')
        plain = chat(server, **greedy).choices[0]
        assert plain.message.content == "".join(SAID) and plain.finish_reason == "stop"


def test_calls_behind_a_special_token(tmp_path: Path) -> None:
    """Mistral's: the token that a call begins with has no text of its own."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    template = TOOLS_TEMPLATE.replace("<tool_call>\n", "[TOOL_CALLS][").replace("\n</tool_call>", "]")
    template = template.replace("'\n' }}{{ '</tool_call>'", "']'")
    with serving(make_gguf(tmp_path / "tiny.gguf", tokenizer, chat_template=template)) as server:
        made = chat(server, tools=[TOOL], tool_choice="required").choices[0]
        jsonschema.validate(arguments_of(made)[1], SCHEMA)
        strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
        biased = {"logit_bias": {str(tokenizer.token_to_id("[TOOL_CALLS]")): 100}}
        made = chat(server, tools=[strict], temperature=0, max_tokens=200, **biased).choices[0]
        jsonschema.validate(arguments_of(made)[1], SCHEMA)


def test_what_a_template_makes_nothing_of_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    user_only = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    asked: list[tuple[dict[str, Any], str]] = [
        ({"tools": [TOOL]}, "tools"),
        ({"extra_body": {"documents": [{"text": "x"}]}}, "documents"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"messages": [*ASK, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": [*ASK, {"role": "assistant", "tool_calls": [call]}]}, "messages"),
    ]
    with serving(make_gguf(tmp_path / "tiny.gguf", tokenizer, chat_template=user_only)) as plain:
        for fields, param in asked:
            with pytest.raises(openai.BadRequestError, match="chat template") as caught:
                chat(plain, **fields)
            assert caught.value.param == param


def test_other_endpoints_are_not_there(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="there are /v1/chat/completions"):
        server.openai.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.NotFoundError, match="POST /v1/responses"):
        server.openai.responses.create(model="tiny", input="x")
    with pytest.raises(openai.BadRequestError, match="lie between 0 and 339"):
        chat(server, logit_bias={"5000": 1})
