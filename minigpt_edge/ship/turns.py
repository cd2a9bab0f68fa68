"""What a chat template writes around messages, as far as it treats each by its role alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from os.path import commonprefix

_TEXTS = {role: f"minigpt-edge-{role}-probe" for role in ("system", "user", "assistant")}
_DAYS = (datetime(1987, 2, 3, 4, 5, 6), datetime(2042, 11, 22, 23, 34, 45))
_CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True)
class Turns:
    """The texts around a message of each role, at the start, and before the answer.

    Attributes:
        around: role -> (before, after); without "system" where the template refuses such messages.
        start: of every conversation.
        answer: what comes before the model's turn.
        system: the message that the template adds of its own accord, "" if none; None if it shows the date.
    """

    around: Mapping[str, tuple[str, str]]
    start: str
    answer: str
    system: str | None

    def write(self, messages: Sequence[tuple[str, str]]) -> str:
        """The prompt of messages, (role, text) each."""
        if self.system and messages[0][0] != "system":
            messages = [("system", self.system), *messages]
        turns = [self.around[role][0] + text + self.around[role][1] for role, text in messages]
        return self.start + "".join(turns) + self.answer


def turns_of(template: str, special: Mapping[str, str]) -> Turns | None:
    """The turns of a chat template; None if it fails, has other rules, or shows the date in other places.

    They are found by rendering conversations, since templates for the same format are written in many ways.

    Args:
        special: the variables that hold special tokens.
    """
    for closing in dict.fromkeys(("", special.get("eos_token", ""), None)):
        try:
            found, later = (_turns(_Rendering(template, special, day), closing) for day in _DAYS)
            break
        except Exception:  # a template is foreign code, and may write no message as it is
            continue
    else:
        return None
    if found == later:
        return found
    undated = replace(found, system=None)
    return undated if undated == replace(later, system=None) else None


@dataclass(frozen=True)
class _Rendering:
    template: str
    special: Mapping[str, str]
    day: datetime

    def __call__(self, *roles: str, answer: bool = True) -> str:
        from minigpt_edge_runtime.generate.chat_inputs import ChatInputs
        from minigpt_edge_runtime.generate.chat_template import render

        messages = [{"role": role, "content": _TEXTS[role]} for role in roles]
        inputs = ChatInputs(variables={"add_generation_prompt": answer})
        return render(self.template, messages, self.special, inputs, now=lambda: self.day)

    def parts(self, *roles: str, answer: bool = True) -> list[str]:
        """The text before, between and after the messages."""
        rest, parts = self(*roles, answer=answer), []
        for role in roles:
            before, _, rest = _partition(rest, _TEXTS[role])
            parts.append(before)
        return [*parts, rest]


def _turns(render: _Rendering, closing: str | None) -> Turns:
    """ValueError if the template has other rules; or what it raises.

    Args:
        closing: what follows a conversation that asks for no answer; None if its last answer ends otherwise.
    """
    before_all, end = render.parts("user")
    _, to_answer, to_user, _ = render.parts("user", "assistant", "user")
    after_user = _without(render.parts("user", answer=False)[-1], after=closing or "")
    if closing is None:
        before_user = commonprefix([to_user[::-1], before_all[::-1]])[::-1]
        after_answer = _without(to_user, after=before_user)
    else:
        after_answer = _without(render.parts("user", "assistant", answer=False)[-1], after=closing)
        before_user = _without(to_user, before=after_answer)
    before_answer = _without(to_answer, before=after_user)
    around = {"user": (before_user, after_user), "assistant": (before_answer, after_answer)}
    start, system = _without(before_all, after=before_user), ""
    try:
        opening, to_user, _ = render.parts("system", "user")
    except Exception:  # the template refuses it, or has no place for it
        pass
    else:
        after_system = _without(to_user, after=before_user)
        if not opening.startswith(start):  # without a message the template has one of its own
            system = _without(_without(start, before=opening), after=after_system)
            bos = render.special.get("bos_token", "")
            # A BOS that every turn begins with, as SmolLM2's, is the turn's and not the start's.
            start = bos if opening.startswith(bos) and not before_user.startswith(bos) else ""
        around["system"] = (_without(opening, before=start), after_system)
    turns = Turns(around, start, _without(end, before=after_user), system)
    for roles in _CONVERSATIONS:
        if around.keys() >= set(roles) and turns.write([(role, _TEXTS[role]) for role in roles]) != render(
            *roles
        ):
            raise ValueError("the template does not treat messages by their roles alone")
    return turns


def _partition(text: str, middle: str) -> tuple[str, str, str]:
    before, found, after = text.partition(middle)
    if not found:
        raise ValueError("the template does not write a message as it is")
    return before, found, after


def _without(text: str, *, before: str = "", after: str = "") -> str:
    """A text without its beginning or end; ValueError if it has another."""
    if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after)):
        raise ValueError("the template writes a message in different ways")
    return text[len(before) : len(text) - len(after)]
