"""What a chat template is given, in the form that transformers gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; templates read the first
_OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "


@dataclass(frozen=True)
class ChatInputs:
    """What a template may be given beside the messages.

    Attributes:
        tools: JSON schemas of functions, in OpenAI's form.
        documents: {"title", "text"} each.
        continue_final_message: leave the last message open, for the model to go on with it, and begin no new.
        variables: further ones that the template knows, such as {"enable_thinking": False}.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    continue_final_message: bool = False
    variables: Mapping[str, Any] | None = None


def prepared_messages(
    messages: Iterable[Mapping[str, Any]], open_last: bool = False
) -> tuple[list[dict[str, Any]], str | None]:
    """Messages as templates get them, and with `open_last` the text of the last, which is marked then.

    Raises:
        ValueError: there is no message, or no text in the last one.
        TypeError: one is not an object.
    """
    chat = [_message(message) for message in messages]
    if not chat:
        raise ValueError("there are no messages")
    return chat, _opened(chat) if open_last else None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates get it: without what is None, its reasoning under every name."""
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is an object with a role and content, not {message!r}")
    given = {name: plain(value) for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def plain(value: Any) -> Any:
    """JSON's types alone: a template must not call methods of other objects."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enumeration's member would say its name
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return f"<{type(value).__name__}>"


def _opened(chat: list[dict[str, Any]]) -> str:
    """The text of the last message, which gets a mark at its end."""
    content = chat[-1].get("content")
    parts = [part for part in content if "text" in part] if isinstance(content, list) else []
    holder, key = (parts[-1], "text") if parts else (chat[-1], "content")
    if not isinstance(text := holder.get(key), str):
        raise ValueError("the last message has no text to go on with")
    holder[key] = text + _OPEN_END
    return text


def up_to_the_end(text: str, last: str) -> str:
    """What a template wrote before the mark; spaces that it took off the message stay away."""
    mark = _OPEN_END.strip()
    if mark not in text or last.strip() not in text:
        raise ValueError("the template does not write the last message as it is")
    before, _, after = text.rpartition(mark)
    return before if after.startswith(" ") else before.rstrip()
