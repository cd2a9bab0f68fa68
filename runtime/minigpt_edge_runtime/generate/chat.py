"""A conversation as the text and tokens that a model was trained on, through its own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from minigpt_edge_runtime.engines.engine import Engine, Vocabulary
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.tokenizer_files import choose_template
from minigpt_edge_runtime.generate.chat_inputs import ChatInputs

WITHOUT_TEMPLATE = "let the model continue a text instead, without chat"


class ChatTemplateError(EdgeError):
    """The model has no chat template, or it refuses these messages."""


def chat_ids(
    engine: Vocabulary,
    messages: Sequence[Mapping[str, Any]],
    /,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    Args:
        messages: {"role", "content"} each, and whatever else the template knows.
        tools: functions that the model may call, as OpenAI describes them.
        documents: {"title", "text"} each, for templates that know documents.
        continue_final_message: the last message is the beginning of the answer.
        variables: further ones that the template knows, such as enable_thinking=False.

    Raises:
        ChatTemplateError: there is no template, or it fails.
        EdgeError: jinja2 is not installed.
    """
    text = render_chat(
        _template(engine, tools is not None),
        messages,
        engine.special_texts,
        ChatInputs(tools, documents, continue_final_message, variables),
    )
    start = engine.special_text("bos")
    if engine.adds_start and not text.startswith(start):
        text = start + text
    return engine.tokenize(text, special=True)


def _template(engine: Vocabulary, with_tools: bool) -> str:
    try:
        template = choose_template(engine.chat_templates, with_tools)
    except EdgeError as error:
        raise ChatTemplateError(error.message, error.hint) from error
    if template is None:
        raise ChatTemplateError("this model has no chat template", WITHOUT_TEMPLATE)
    return template


class Conversation:
    """Turns with a model. The oldest are dropped when they leave too little of the context for an answer.

    Args:
        engine: its tokenizer and template are used, not its cache.
        system: a message that stays in front of all turns.
        room: tokens to keep free for an answer, at most a quarter of the context.
        variables: further ones of the template.

    Raises:
        ChatTemplateError: the model has no chat template.
    """

    def __init__(
        self,
        engine: Engine,
        system: str | None = None,
        room: int = 256,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        if not engine.chat_templates:
            raise ChatTemplateError("this model has no chat template", WITHOUT_TEMPLATE)
        self._engine = engine
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._budget = engine.context_length - min(room, engine.context_length // 4)
        self._variables = variables or {}
        self._turns: list[dict[str, str]] = []
        self._asked: list[dict[str, str]] = []

    def ask(self, text: str) -> tuple[list[int], int]:
        """The prompt for an answer to `text`, and how many old turns (question and answer) it made forget.

        Raises:
            ChatTemplateError: the template fails.
        """
        self._asked = [*self._turns, {"role": "user", "content": text}]
        dropped = 0
        while True:
            ids = chat_ids(self._engine, [*self._system, *self._asked], **self._variables)
            if len(ids) <= self._budget or len(self._asked) == 1:
                return ids, dropped
            del self._asked[:2]
            dropped += 1

    def answered(self, text: str) -> None:
        """Make what was last asked, and its answer, the history; without this call it stays as it was."""
        self._turns = [*self._asked, {"role": "assistant", "content": text}]

    def reset(self) -> None:
        """Forget all turns."""
        self._turns.clear()


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    special: Mapping[str, str],
    inputs: ChatInputs | None = None,
) -> str:
    """The text of a conversation. Templates come from strangers and run in a sandbox.

    Args:
        special: the variables that hold special tokens, "bos_token" and so on.
        inputs: what else the template is given.

    Raises:
        ChatTemplateError: the template is broken or refuses the messages.
        EdgeError: jinja2 is not installed.
    """
    with _understood():
        from minigpt_edge_runtime.generate.chat_template import render

        return render(template, messages, special, inputs or ChatInputs())


@contextmanager
def _understood() -> Iterator[None]:
    """Tell a missing jinja2 and a template's errors, which may be any: it is foreign code."""
    try:
        yield
    except ImportError as error:
        hint = 'pip install "jinja2>=3.1.6"'
        raise EdgeError(f"chat needs jinja2 for the model's template ({error})", hint) from error
    except Exception as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        line = getattr(error, "lineno", None)
        message = f"the model's chat template failed ({words}{f', line {line}' if line else ''})"
        raise ChatTemplateError(message, f"change the messages, or {WITHOUT_TEMPLATE}") from error
