"""What users write, checked by pydantic against dataclasses; the first thing that is wrong, in one line."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, StrictInt, TypeAdapter, ValidationError

from minigpt_edge_runtime.errors import EdgeError

T = TypeVar("T")
Count = Annotated[StrictInt, Field(ge=1)]
Names = Annotated[  # one, or several in a list
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


def checked(kind: type[T], value: Any, where: str, hint: str) -> T:
    """A dataclass from the content of a file; EdgeError that says what is wrong in it."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise EdgeError(f"{where}: {problem(error, value)}", hint) from error
    except EdgeError as error:  # of what the dataclass checks itself
        raise EdgeError(f"{where}: {error.message}", error.hint) from error


def problem(error: ValidationError, value: Any = None) -> str:
    """The first thing that is wrong, and where in `value`."""
    first = error.errors(include_url=False)[0]
    parts: list[str] = []
    kind = None
    for part in map(str, first["loc"]):
        if part == kind:  # pydantic names the kind of a union, which is no key of the file
            kind = None
            continue
        parts.append(part)
        value = value.get(part) if isinstance(value, dict) else None
        kind = value.get("kind") if isinstance(value, dict) else None
    place = ".".join(parts)
    match first["type"]:
        case "missing":
            return f"{place} is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"there is no key {place}"
        case "union_tag_not_found":
            return f"{place}.kind is missing"
        case "union_tag_invalid":
            context = first["ctx"]
            return f"{place}.kind is {context['tag']!r}, it should be one of {context['expected_tags']}"
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place} is {first['input']!r}, {reason.replace('Input should', 'it should')}"
