"""The environment that chat templates run in: transformers' own, in jinja2's sandbox, for a bounded time.

The sandbox bounds what a template reaches and the length of one `range`, but not loops in loops. What a
template makes in memory is not bounded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

SECONDS = 5.0  # real templates take milliseconds
_LARGEST = 10**6  # that an operator makes at once: characters, items, or bits of a number
_DEADLINE, _IN_TIME = "minigpt_edge_deadline", "minigpt_edge_in_time"


@lru_cache(maxsize=4)
def compiled(template: str) -> Template:
    """A template, ready for `render`."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # jinja2's own escapes for HTML
    environment.filters[_IN_TIME] = _in_time
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)


def render(template: str, **given: Any) -> str:
    """The text of a template, within SECONDS.

    Raises:
        Exception: whatever the template raises; SecurityError if it takes too long.
    """
    return compiled(template).render(**given, **{_DEADLINE: time.monotonic() + SECONDS})


class _GenerationBlock(Extension):
    """{% generation %}…{% endgeneration %} marks answers for training and changes no text."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TimedLoops(CodeGenerator):
    """Lets every loop look at the time."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        for loop in node.find_all(nodes.For):
            place = {"lineno": loop.lineno, "environment": self.environment}
            loop.iter = nodes.Filter(loop.iter, _IN_TIME, [], [], None, None, **place)
        super().visit_Template(node, frame)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _TimedLoops
    intercepted_binops = frozenset({"*", "**"})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check(__context)  # macros can call each other without any loop
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > _LARGEST:
            raise SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)


def _size(operator: str, left: Any, right: Any) -> float:
    """Items or bits of left * right or left ** right, at most."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length()
    for items, times in ((left, right), (right, left)):
        if isinstance(times, int) and hasattr(items, "__len__"):
            return len(items) * times
    return 0


def _check(context: Context) -> None:
    # What a template sets is in context.vars, what it was given is in context.parent.
    if time.monotonic() > context.parent[_DEADLINE]:
        raise SecurityError(f"it takes more than {SECONDS:g} seconds")


@pass_context
def _in_time(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check(context)
        yield item


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
