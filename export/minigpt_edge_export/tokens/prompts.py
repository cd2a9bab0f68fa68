"""Conversations that a chat template is tried on, and how it renders them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from minigpt_edge_runtime.generate.chat import ChatTemplateError, render_chat

_USER, _ANSWER = {"role": "user", "content": "What may the tenant do?"}, "  Nothing.\n\n1. Really "
CONVERSATIONS = (
    [_USER],
    [{"role": "system", "content": "Be short.\n"}, _USER],
    [_USER, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": " Is that\n all? "}],
)


def rendered(template: str | None, special: Mapping[str, str]) -> list[tuple[list[dict[str, str]], str]]:
    """Every conversation that the template takes, and its text.

    Args:
        special: the variables that hold special tokens, "bos_token" and so on.
    """
    found = []
    for messages in CONVERSATIONS if template else ():
        with suppress(ChatTemplateError):  # a template may take no system message, for one
            found.append((messages, render_chat(template or "", messages, special)))
    return found
