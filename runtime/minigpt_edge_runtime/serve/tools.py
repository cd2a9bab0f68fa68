"""The functions that a chat's model may call, as a request names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minigpt_edge_runtime.serve.errors import ApiError
from minigpt_edge_runtime.serve.fields import flag

MAX_TOOLS = 128


@dataclass(frozen=True)
class Tool:
    """A function: `definition` is what the client sent, `parameters` the schema of its arguments."""

    name: str
    parameters: dict[str, Any]
    strict: bool
    definition: dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """What may be called.

    Attributes:
        all: what the model is told of.
        allowed: what it may call.
        required: whether it has to.
        several: whether an answer may have more than one call.
    """

    all: tuple[Tool, ...]
    allowed: tuple[Tool, ...]
    required: bool
    several: bool

    @property
    def bound(self) -> bool:
        """Whether the model must not call anything else, or with other arguments."""
        return self.required or self.allowed != self.all or any(tool.strict for tool in self.all)


def read_tools(given: Mapping[str, Any]) -> Tools | None:
    """The tools of a request, None if there are none or none may be called.

    Raises:
        ApiError: one is not a function, or a choice is not among them.
    """
    several = flag(given, "parallel_tool_calls", True)
    listed = given.get("tools", [])
    if not isinstance(listed, list) or len(listed) > MAX_TOOLS:
        raise ApiError(400, f"tools is not a list of at most {MAX_TOOLS} tools", param="tools")
    tools = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(listed))
    choice = given.get("tool_choice", "auto")
    if choice == "none":
        return None
    if not tools:
        if choice != "auto":
            raise ApiError(400, "tool_choice needs tools to choose from", param="tool_choice")
        return None
    required, names = _choice(choice)
    known = {tool.name for tool in tools}
    if missing := [name for name in names or () if name not in known]:
        raise ApiError(400, f"tool_choice names {missing[0]!r}, tools does not", param="tool_choice")
    allowed = tuple(tool for tool in tools if names is None or tool.name in names)
    return Tools(tools, allowed, required, several)


def _tool(value: Any, where: str) -> Tool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or value.get("type", "function") != "function":
        raise ApiError(400, f"{where} is not a function, other tools there are not", param=where)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, f"{where} has no name", param=where)
    parameters = function.get("parameters")
    if parameters is None or parameters == {}:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise ApiError(400, f"{where} has parameters that are not a schema of an object", param=where)
    return Tool(name, parameters, function.get("strict") is True, {"type": "function", **value})


def _choice(choice: Any) -> tuple[bool, list[str] | None]:
    """Whether a call is required, and of which functions; None if of any."""
    if choice in ("auto", "required", "any"):
        return choice != "auto", None
    if isinstance(choice, dict) and choice.get("type") == "function":
        named = choice.get("function", choice)
        if isinstance(named, dict) and isinstance(named.get("name"), str):
            return True, [named["name"]]
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if isinstance(allowed, dict) and allowed.get("mode") in ("auto", "required"):
            listed = allowed.get("tools")
            tools = listed if isinstance(listed, list) else []
            names = [tool.get("function", tool).get("name") for tool in tools if isinstance(tool, dict)]
            if names and all(isinstance(name, str) for name in names):
                return allowed["mode"] == "required", names
    message = "tool_choice is not none, auto, required, a function of tools or allowed_tools"
    raise ApiError(400, message, param="tool_choice")
