"""The messages of a chat, as chat templates want them."""

from __future__ import annotations

import json
from typing import Any

from minigpt_edge_runtime.generate.chat_inputs import REASONING
from minigpt_edge_runtime.serve.errors import ApiError

ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    "developer": "system",
    "function": "tool",
}
# Unlike other names beside role and content, these would change the answer.
_REFUSED = ("audio", "images", "prefix", "partial")

Message = dict[str, Any]


def read_messages(value: Any) -> list[Message]:
    """Check a list of messages; what no template knows is dropped.

    Raises:
        ApiError: one has no role or text, or something that a text model can't be told.
    """
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages must be a list of messages, at least one", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(400, f"{where} must have a role of {', '.join(ROLES)}", param=where)
    if asked := [name for name in _REFUSED if value.get(name)]:
        raise ApiError(400, f"{where} has {asked[0]!r}, which this server can't use", param=where)
    result: Message = {"role": ROLES[role], "content": _content(value, where)}
    for name in ("name", "tool_call_id", *REASONING):
        if isinstance(given := value.get(name), str | int) and given:
            result[name] = str(given)
    calls = value.get("tool_calls") or []
    if older := value.get("function_call"):
        calls = [{"function": older}]
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ApiError(400, f"{where} may not have tool_calls like these", param=where)
        result["tool_calls"] = [_call(call, where) for call in calls]
    return result


def _content(message: Message, where: str) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if content is None and message["role"] in ("assistant", "tool", "function"):
        content = message.get("refusal") or ""
    if not isinstance(content, str):
        raise ApiError(400, f"{where} must have a text as its content", param=where)
    return content


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "refusal", "input_text", "output_text"):
        raise ApiError(400, f"{where} has content that is not text ({str(kind)[:40]})", param=where)
    text = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(text, str):
        raise ApiError(400, f"{where} has a part of type {kind} without a text", param=where)
    return text


def _call(value: Any, where: str) -> Message:
    """A call, its arguments as the object that templates write as JSON."""
    function = value.get("function") if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise ApiError(400, f"{where} has a tool call that is not of a named function", param=where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            message = f"{where} has a call of {name} whose arguments are not JSON ({error})"
            raise ApiError(400, message, param=where) from error
    if not isinstance(arguments, dict | None):
        raise ApiError(400, f"{where} has a call of {name} whose arguments are no object", param=where)
    call = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
    return {"id": value["id"], **call} if isinstance(value.get("id"), str) else call
