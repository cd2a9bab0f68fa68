"""jinja2's sandbox with bounds for a template's time and for what it makes at once.

The sandbox alone bounds what a template reaches and the length of one `range`, but not loops in loops, a text
that doubles, or a width of a thousand million. What is gathered in lists and dicts, in each other too, is
bounded by the time alone.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.compiler import CodeGenerator
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

SECONDS = 5.0  # real templates take milliseconds
_LARGEST = 10**6  # that is made of nothing: spaces, repeated items, bits of a number
_LONGEST = 10**7  # characters or items that are joined, and characters of the whole text
_DEADLINE, _IN_TIME, _SHORT = "minigpt_edge_deadline", "minigpt_edge_in_time", "minigpt_edge_short"
_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "tojson"}
_PADDING |= {"generate_lorem_ipsum"}
# A width of millions in a pattern, or one from an argument.
_PERCENT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{7}|\*)")
_BRACE_WIDTH = re.compile(r"\{[^{}]*(:[^{}]*\d{7}|:[^{}]*\{)")


def render_bounded(template: Template, given: Mapping[str, Any]) -> str:
    """The text of a template of a `BoundedEnvironment`.

    Raises:
        Exception: whatever the template raises; SecurityError if it takes too long or makes too much.
    """
    pieces, length = [], 0
    for piece in template.generate({**given, _DEADLINE: time.thread_time() + SECONDS}):
        pieces.append(piece)
        length += len(piece)
        if length > _LONGEST:
            raise SecurityError(f"it writes more than {_LONGEST:,} characters")
    return "".join(pieces)


class _Bounds(CodeGenerator):
    """Lets every loop look at the time, and every `~` at the length of what it joins."""

    def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:
        for loop in node.find_all(nodes.For):
            loop.iter = self._through(_IN_TIME, loop.iter)
        for joined in node.find_all(nodes.Concat):
            joined.nodes = [self._through(_SHORT, part) for part in joined.nodes]
        super().visit_Template(node, frame)

    def _through(self, name: str, node: nodes.Node) -> nodes.Filter:
        place = {"lineno": node.lineno, "environment": self.environment}
        return nodes.Filter(node, name, [], [], None, None, **place)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; call `bound_filters` when all filters are there."""

    code_generator_class = _Bounds
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def bound_filters(self) -> None:
        """Let every filter look at what it is going to make, and at what it has made."""
        self.filters.update({name: _bounded(name, made) for name, made in self.filters.items()})
        self.filters.update({_IN_TIME: _in_time, _SHORT: _short})

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check(__context)  # macros can call each other without any loop
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        _refuse_large(name, *_size_of_call(name, owner, (*args, *kwargs.values())))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _refuse_large(operator, *_size_of_operation(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _refuse_large(what: str, size: float, most: int = _LONGEST) -> None:
    if size > most:
        raise SecurityError(f"the result of {what} is too large")


def _check(context: Context) -> None:
    # What a template sets is in context.vars, what it was given is in context.parent.
    if time.thread_time() > context.parent[_DEADLINE]:
        raise SecurityError(f"it takes more than {SECONDS:g} seconds")


@pass_context
def _in_time(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _check(context)
        yield item


def _short(value: Any) -> Any:
    """The value itself; SecurityError if it is a long text or list."""
    if hasattr(value, "__len__"):
        _refuse_large("an expression", len(value))
    return value


def _bounded(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    before = 1 if hasattr(made, "jinja_pass_arg") else 0  # arguments of jinja2's own before the value

    @functools.wraps(made)
    def run(*args: Any, **kwargs: Any) -> Any:
        first, value, more = args[:before], args[before], args[before + 1 :]
        if name in ("join", "sum"):
            value = list(value)  # it may be read once only
        _refuse_large(name, *_size_of_call(name, value, (*more, *kwargs.values())))
        return _short(made(*first, value, *more, **kwargs))

    return run


def _size_of_call(name: str, value: Any, args: Sequence[Any]) -> tuple[float, int]:
    """What a method or filter makes of a value, where it may be much, and the most that it may be."""
    if name in _PADDING:
        return max((abs(given) for given in args if isinstance(given, int)), default=0), _LARGEST
    if name in ("format", "format_map"):
        wide = _BRACE_WIDTH.search(str(value)) or _PERCENT_WIDTH.search(str(value))
        return float("inf") if wide else 0, _LARGEST
    if name == "replace" and len(args) > 1:
        return str(value).count(str(args[0])) * len(str(args[1])), _LONGEST
    items: Any = []
    if name == "join" and isinstance(value, str) and args:  # the method, whose list is its argument
        items = args[0]
    elif name in ("join", "sum"):
        items = value
    return _length(items if isinstance(items, list | tuple) else []), _LONGEST


def _size_of_operation(operator: str, left: Any, right: Any) -> tuple[float, int]:
    """The same of an operator."""
    if operator == "%":
        return float("inf") if isinstance(left, str) and _PERCENT_WIDTH.search(left) else 0, _LARGEST
    if operator == "+":
        return _length((left, right)), _LONGEST
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length(), _LARGEST
    for items, times in ((left, right), (right, left)):
        if isinstance(times, int) and hasattr(items, "__len__"):
            return len(items) * times, _LARGEST
    return 0, _LARGEST


def _length(items: Iterable[Any]) -> int:
    return sum(len(item) for item in items if hasattr(item, "__len__"))
