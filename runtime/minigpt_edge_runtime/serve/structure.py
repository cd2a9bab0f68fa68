"""What a request says about the form of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minigpt_edge_runtime.generate.grammar import json_rule
from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.fields import mapping


def read_structure(given: Mapping[str, Any]) -> tuple[str, str | None]:
    """The Lark rule of the answer's JSON, or None for any text, and the field that asks for it.

    Raises:
        ApiError: there is no such form, or there are two.
    """
    rules = {name: _rule(given[name], name) for name in ("response_format", "json_schema") if name in given}
    found = [(name, rule) for name, rule in rules.items() if rule]
    if len(found) + ("grammar" in given) > 1:
        raise ApiError(400, "give response_format, json_schema or grammar, not several", param=found[0][0])
    return found[0] if found else ("response_format", None)


def read_grammar(given: Mapping[str, Any]) -> str | None:
    """The text of `grammar`; ApiError if it is none."""
    text = given.get("grammar")
    if text is not None and not isinstance(text, str):
        raise ApiError(400, "grammar is not a text in GBNF", param="grammar")
    return text


def _rule(value: Any, name: str) -> str | None:
    if name == "json_schema":
        return _schema_rule(value, name)
    kind = mapping(value, name).get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")  # llama.cpp's
        return _schema_rule({"type": "object"} if schema in (None, {}) else schema, name)
    if kind == "json_schema":
        inner = value.get("json_schema", value)
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if schema is None:
            raise ApiError(400, f"{name} has no json_schema.schema", param=name)
        return _schema_rule(schema, name)
    raise ApiError(400, f"{name} is not of type text, json_object or json_schema", param=name)


def _schema_rule(schema: Any, name: str) -> str:
    if not isinstance(schema, dict | bool) or schema is False:
        raise ApiError(400, f"{name} has a schema that is not an object", param=name)
    return json_rule(schema)
