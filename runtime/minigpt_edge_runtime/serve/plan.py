"""From a request to what makes its choices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.chat import ChatTemplateError, chat_ids
from minigpt_edge_runtime.generate.generate import Generation, PromptTooLong, Session, document_ids
from minigpt_edge_runtime.generate.grammar import Constraint, Grammars, from_gbnf
from minigpt_edge_runtime.serve.choice import Plan
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.request import Chat, Request
from minigpt_edge_runtime.serve.tool_calls import CallFormat, call_format, calls_grammar, tokens_around


def make_plans(
    session: Session, grammars: Grammars, request: Request, document_start: str | None
) -> list[Plan]:
    """A plan for every choice of every prompt, in the order of their indices.

    Args:
        document_start: what a text's prompt begins with.

    Raises:
        ApiError: the model can't do what is asked for.
    """
    engine = session.engine
    if foreign := [token for token in request.sampling.logit_bias if not 0 <= token < engine.vocab_size]:
        message = f"logit_bias has token {foreign[0]}, they lie between 0 and {engine.vocab_size - 1:,}"
        raise ApiError(400, message, param="logit_bias")
    prompts = _prompts(engine, request, document_start)
    tools = request.chat.tools if request.chat else None
    format = _format(engine) if tools else None
    constraint = _constraint(engine, grammars, request, format)
    shown = tokens_around(engine, format) if format else frozenset()
    plans = []
    for ids, echo, added in prompts:
        for number in range(request.choices):
            generation = _generation(session, request, ids, number)
            generation.shown, generation.constraint = shown, constraint
            plans.append(Plan(generation, format, tools is None or tools.several, echo, added))
    return plans


def _generation(session: Session, request: Request, ids: list[int], number: int) -> Generation:
    sampling = replace(request.sampling, seed=request.sampling.seed + number)
    param = "messages" if request.chat else "prompt"
    try:
        return Generation(
            session,
            ids,
            sampling,
            request.max_tokens,
            request.stop,
            fresh=request.reproducible and not number,  # the others find the prompt in the cache
            logprobs=request.logprobs,
            echo=request.echo,
        )
    except PromptTooLong as error:
        raise ApiError(400, error.message, param=param, code="context_length_exceeded") from error
    except UsageError as error:
        raise ApiError(400, error.message, param=param) from error


def _prompts(
    engine: Engine, request: Request, document_start: str | None
) -> list[tuple[list[int], str, int]]:
    """Token ids of each prompt, its text if the answer begins with it, and how many of its ids we added."""
    if request.chat:
        return [(_chat_ids(engine, request.chat), "", 0)]
    found = []
    for prompt in request.prompts or []:
        if isinstance(prompt, str):
            ids, text, added = document_ids(engine, prompt, document_start), prompt, 1
        elif all(0 <= token < engine.vocab_size for token in prompt):
            ids, text, added = prompt, engine.detokenize(prompt).decode(errors="replace"), 0
        else:
            raise ApiError(400, f"token ids lie between 0 and {engine.vocab_size - 1:,}", param="prompt")
        found.append((ids, text if request.echo else "", added))
    return found


def _chat_ids(engine: Engine, chat: Chat) -> list[int]:
    try:
        ids = _rendered(engine, chat)
    except ChatTemplateError as error:
        raise ApiError(400, error.message, param="messages", code="chat_template") from error
    for param, what, without in _variants(chat):
        try:
            same = _rendered(engine, without) == ids
        except ChatTemplateError:
            same = False
        if same:
            message = f"{what} not supported: this model's chat template makes nothing of it"
            raise ApiError(400, message, param=param, code="unsupported_parameter")
    return ids


def _rendered(engine: Engine, chat: Chat) -> list[int]:
    tools = [tool.definition for tool in chat.tools.all] if chat.tools else None
    return chat_ids(engine, chat.messages, tools=tools, **chat.arguments)


def _variants(chat: Chat) -> Iterator[tuple[str, str, Chat]]:
    """The chat without, or with another, of each thing that not every template uses: field, name, chat."""
    if chat.tools:
        yield "tools", "tools are", replace(chat, tools=None)
    if any(message["role"] == "tool" for message in chat.messages):
        others = [message for message in chat.messages if message["role"] != "tool"]
        yield "messages", "messages of tools are", replace(chat, messages=others)
    if any("tool_calls" in message for message in chat.messages):
        bare = [{k: v for k, v in message.items() if k != "tool_calls"} for message in chat.messages]
        yield "messages", "tool_calls are", replace(chat, messages=bare)
    for name in chat.needed:
        value = chat.arguments[name]
        instead = {"reasoning_effort": "low" if value != "low" else "high", "enable_thinking": False}
        yield name, f"{name} is", replace(chat, arguments={**chat.arguments, name: instead.get(name)})


def _format(engine: Engine) -> CallFormat:
    """How the model writes calls."""
    if found := call_format(engine):
        return found
    message = "tools are not supported: this model's chat template does not say how to call them in JSON"
    raise ApiError(400, message, param="tools", code="unsupported_parameter")


def _constraint(
    engine: Engine, grammars: Grammars, request: Request, format: CallFormat | None
) -> Constraint | None:
    """What the answer keeps to, None if it is free."""
    tools = request.chat.tools if request.chat else None
    field, lark = request.rule_field, f"start: {request.rule}" if request.rule else None
    try:
        if format and tools and (tools.bound or request.rule):
            field = "tools" if tools.bound else field
            lark = calls_grammar(engine, format, tools, request.rule)
        elif request.grammar:
            field = "grammar"
            lark = from_gbnf(request.grammar)
        return grammars.constraint(lark) if lark else None
    except EdgeError as error:
        message = f"{field}: {error.message}" + (f" ({error.hint})" if error.hint else "")
        raise ApiError(400, message, param=field, code="unsupported_parameter") from error
