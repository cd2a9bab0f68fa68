"""Chat templates rendered as transformers renders them, without transformers.

What its `apply_chat_template` does to messages and gives to templates is done here; tests compare the texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import SecurityError
from jinja2.utils import Namespace

from minigpt_edge_runtime.generate.chat_inputs import ChatInputs, plain, prepared_messages, up_to_the_end
from minigpt_edge_runtime.generate.template_bounds import BoundedEnvironment, render_bounded


def render(
    template: str,
    messages: Iterable[Mapping[str, Any]],
    special: Mapping[str, str],
    inputs: ChatInputs,
    now: Callable[[], datetime] = datetime.now,
) -> str:
    """The text of a conversation, up to where the assistant's next answer begins.

    Args:
        special: the variables that hold special tokens, "bos_token" and so on.
        inputs: what the template is given beside them.
        now: the clock that `strftime_now` reads.

    Raises:
        Exception: whatever the template raises; ValueError if there is no message, or none to go on with.
    """
    chat, last = prepared_messages(messages, inputs.continue_final_message)
    given = {"add_generation_prompt": last is None, **special, **plain(inputs.variables or {})}
    given |= {"strftime_now": lambda pattern: now().strftime(pattern)}
    given |= {"messages": chat, "tools": plain(inputs.tools), "documents": plain(inputs.documents)}
    text = render_bounded(compiled(template), given)
    return text if last is None else up_to_the_end(text, last)


@lru_cache(maxsize=4)
def compiled(template: str) -> Template:
    """A template, ready to be rendered.

    Raises:
        TemplateSyntaxError: it is no template.
    """
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes for HTML
    environment.bound_filters()
    environment.globals.update(raise_exception=_refuse, dict=_Dict(), namespace=_Namespace)
    return environment.from_string(template)


def variables(template: str) -> set[str]:
    """The names that a template reads and does not set itself.

    Raises:
        TemplateSyntaxError: it is no template.
    """
    return meta.find_undeclared_variables(compiled(template).environment.parse(template))


class _GenerationBlock(Extension):
    """{% generation %}…{% endgeneration %} marks answers for training and changes no text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A block of its own, as in transformers: what is `set` in it is not seen behind it.
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without its attributes, by which a template could leave the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja2's `namespace` without underscored names, which transformers refuses."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no underscored names such as {name!r}")


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
    raise TemplateError(message)
