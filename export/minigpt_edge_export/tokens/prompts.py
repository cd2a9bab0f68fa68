"""Conversations that a chat template is tried on, and how it renders them."""

from __future__ import annotations

from minigpt_edge_runtime.generate.chat import ChatTemplateError, render_chat

_USER, _ANSWER = {"role": "user", "content": "What may the tenant do?"}, "  Nothing.\n\n1. Really "
CONVERSATIONS = (
    [_USER],
    [{"role": "system", "content": "Be short.\n"}, _USER],
    [_USER, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": " Is that\n all? "}],
)


def rendered(template: str | None, bos: str, eos: str) -> list[str]:
    """The text of every conversation that the template takes.

    Args:
        bos, eos: texts of the tokens, "" for none.
    """
    texts = []
    for messages in CONVERSATIONS if template else ():
        try:
            texts.append(render_chat(template or "", messages, bos, eos))
        except ChatTemplateError:  # a template may take no system message, for one
            continue
    return texts
