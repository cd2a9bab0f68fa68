"""A conversation as the text and tokens that a model was trained on, through its own chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from minigpt_edge_runtime.engine import Engine
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    from jinja2 import Template

WITHOUT_TEMPLATE = "let the model continue a text instead, without chat"


class ChatTemplateError(EdgeError):
    """The model has no chat template, or it refuses these messages."""


def chat_ids(engine: Engine, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins.

    Args:
        messages: {"role", "content"} each, as the template wants them.

    Raises:
        ChatTemplateError: there is no template, or it fails.
        EdgeError: jinja2 is not installed.
    """
    if not engine.chat_template:
        raise ChatTemplateError("this model has no chat template", WITHOUT_TEMPLATE)
    start = engine.special_text("bos")
    text = render_chat(engine.chat_template, messages, start, engine.special_text("eos"))
    if engine.adds_start and not text.startswith(start):
        text = start + text
    return engine.tokenize(text, special=True)


class Conversation:
    """Turns with a model. The oldest are dropped when they leave too little of the context for an answer.

    Args:
        engine: its tokenizer and template are used, not its cache.
        system: a message that stays in front of all turns.
        room: tokens to keep free for an answer, at most a quarter of the context.

    Raises:
        ChatTemplateError: the model has no chat template.
    """

    def __init__(self, engine: Engine, system: str | None = None, room: int = 256) -> None:
        if not engine.chat_template:
            raise ChatTemplateError("this model has no chat template", WITHOUT_TEMPLATE)
        self._engine = engine
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._budget = engine.context_length - min(room, engine.context_length // 4)
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
            ids = chat_ids(self._engine, [*self._system, *self._asked])
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


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], bos: str, eos: str) -> str:
    """The text of a conversation. Templates come from strangers and run in jinja2's sandbox.

    Raises:
        ChatTemplateError: the template is broken or refuses the messages.
        EdgeError: jinja2 is not installed.
    """
    try:
        compiled = _compile(template)
        return compiled.render(messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos)
    except EdgeError:
        raise
    except Exception as error:  # a template is foreign code and may raise anything
        message = f"the model's chat template failed ({error})"
        raise ChatTemplateError(message, f"change the messages, or {WITHOUT_TEMPLATE}") from error


@lru_cache(maxsize=4)
def _compile(template: str) -> Template:
    """A template in the environment that transformers gives it."""
    try:
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        hint = 'pip install "jinja2>=3.1.6"'
        raise EdgeError(f"chat needs jinja2 for the model's template ({error})", hint) from error

    class GenerationBlock(Extension):
        """{% generation %}…{% endgeneration %} marks answers for training and changes no text."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes for HTML
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
