"""The part of JSON Schema (draft 2020-12) that our schemas use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt_edge_runtime.errors import EdgeError

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}
_KEYWORDS = {"$schema", "$id", "$defs", "title", "description", "$ref", "type", "enum", "const", "minimum"}
_KEYWORDS |= {"exclusiveMinimum", "pattern", "minItems", "items", "required", "properties"}
_KEYWORDS |= {"additionalProperties"}  # as a schema


def load_schema(name: str) -> dict[str, Any]:
    """A schema of this package, by its file name."""
    return json.loads((Path(__file__).with_name("schemas") / name).read_text(encoding="utf-8"))


def check(value: Any, schema: Mapping[str, Any], what: str, hint: str | None = None) -> None:
    """EdgeError with the JSON path of the first place where `value` is not what `schema` says."""
    for problem in _problems(value, schema, schema, "$"):
        raise EdgeError(f"{what} is damaged: {problem}", hint)


def _problems(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], at: str) -> Iterator[str]:
    if set(schema) - _KEYWORDS:
        raise ValueError(f"this validator does not know {sorted(set(schema) - _KEYWORDS)} (at {at})")
    if "$ref" in schema:
        yield from _problems(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, at)
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type")
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at} is {_short(value)}, not {' or '.join(kinds)}"
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed and not any(
        value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed
    ):
        yield f"{at} is {_short(value)}, not {' or '.join(map(_short, allowed))}"
    if isinstance(value, dict):
        yield from (f"{at} has no {name!r}" for name in schema.get("required", ()) if name not in value)
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, one in value.items():
            yield from _problems(one, known.get(name, others), root, f"{at}.{name}")
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{at} has {len(value)} items, not {schema['minItems']} or more"
        for number, one in enumerate(value):
            yield from _problems(one, schema.get("items", {}), root, f"{at}[{number}]")
    elif isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at} is {_short(value)}, which does not match {schema['pattern']}"
    elif _is(value, "number"):
        if isinstance(value, float) and not math.isfinite(
            value
        ):  # Python's JSON reader takes NaN and Infinity
            yield f"{at} is {value}, not a number"
        if "minimum" in schema and value < schema["minimum"]:
            yield f"{at} is {value}, less than {schema['minimum']}"
        if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
            yield f"{at} is {value}, not more than {schema['exclusiveMinimum']}"


def _is(value: Any, kind: str) -> bool:
    good = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    return good and (kind != "integer" or not isinstance(value, float) or value.is_integer())


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:39] + "…"
