"""Requests to the endpoint, as fuzzing damages them."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_gguf import TOOLS_TEMPLATE, make_gguf, make_tokenizer


def make_requests(folder: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9}},
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]
    sampling = {"temperature": 0.5, "seed": 3, "logit_bias": {"7": 1}, "stop": ["x"], "n": 2, "max_tokens": 3}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"anyOf": [schema, {"const": 1}]}}}
    chat = {"messages": messages, "tools": [tool], "tool_choice": "auto", "response_format": form, **sampling}
    texts = {"prompt": ["The", "a"], "echo": True, "logprobs": 2, "grammar": 'root ::= "a" [b-d]{1,3} | "e"'}
    (folder / "chat.json").write_text(json.dumps({**chat, "logprobs": True, "top_logprobs": 2}))
    (folder / "completion.json").write_text(json.dumps({**texts, **sampling}))
    make_gguf(folder / "tiny.gguf", make_tokenizer(), chat_template=TOOLS_TEMPLATE)


def read_requests(path: Path) -> None:
    """Answer it as the server does, all but HTTP."""
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.errors import EdgeError
    from minigpt_edge_runtime.generate.generate import Session
    from minigpt_edge_runtime.generate.grammar import Grammars
    from minigpt_edge_runtime.serve.choice import Choice
    from minigpt_edge_runtime.serve.errors import ApiError
    from minigpt_edge_runtime.serve.plan import make_plans
    from minigpt_edge_runtime.serve.reply import Reply, encode
    from minigpt_edge_runtime.serve.request import read_request

    with open_engine(path.with_name("tiny.gguf"), 512, 1) as engine:
        try:
            request = read_request(path.read_bytes(), path.stem, "tiny", 8)
            plans = make_plans(Session(engine), Grammars(engine), request, None)
        except ApiError as error:
            raise EdgeError(str(error)) from error
        choices = [Choice(index, plan) for index, plan in enumerate(plans[:3])]
        texts = ["".join(map(choice.push, choice.generation)) + choice.end() for choice in choices]
        encode(Reply("tiny", engine, request).whole([*zip(choices, texts, strict=True)]))
