"""Conversations that a chat template is tried on, and how it renders them."""

from __future__ import annotations

from collections.abc import Mapping

from minigpt_edge_runtime.generate.chat import ChatTemplateError, render_chat

_USER, _ANSWER = {"role": "user", "content": "What may the tenant do?"}, "  Nothing.\n\n1. Really "
CONVERSATIONS = (
    [_USER],
    [{"role": "system", "content": "Be short.\n"}, _USER],
    [_USER, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": " Is that\n all? "}],
)


def rendered(template: str | None, special: Mapping[str, str]) -> list[str]:
    """The text of every conversation that the template takes.

    Args:
        special: the variables that hold special tokens, "bos_token" and so on.
    """
    texts = []
    for messages in CONVERSATIONS if template else ():
        try:
            texts.append(render_chat(template or "", messages, special))
        except ChatTemplateError:  # a template may take no system message, for one
            continue
    return texts
