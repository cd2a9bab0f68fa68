"""A conversation at a terminal: what is typed goes in, the model's answers stream to stdout."""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from minigpt_edge_runtime.click_group import show_error
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.generate.chat import Conversation
from minigpt_edge_runtime.generate.generate import Generation

NOTES = {
    "length": "[cut after --max-tokens]",
    "context": "[cut, the context is full]",
    "cancelled": "[stopped]",
}


def chat(conversation: Conversation, generation: Callable[[list[int]], Generation]) -> None:
    """Take turns until Ctrl-D or /exit; /reset forgets the turns so far.

    Args:
        conversation: the history, begun or not.
        generation: makes the answer to a prompt's token ids.
    """
    click.echo("/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer", err=True)
    for line in _lines():
        if line.strip() == "/reset":
            conversation.reset()
            click.echo("[forgotten]", err=True)
            continue
        with _going_on():
            prompt, dropped = conversation.ask(line)
            if dropped:
                click.echo(f"[the context is full: forgot the oldest {dropped} turns]", err=True)
            conversation.answered(_show(generation(prompt)))


def continue_texts(
    prompt_ids: Callable[[str], list[int]], generation: Callable[[list[int]], Generation]
) -> None:
    """Go on with each line that is typed, every one a text of its own, until Ctrl-D or /exit.

    Args:
        prompt_ids: token ids of a text to go on with.
        generation: makes the continuation of a prompt's token ids.
    """
    click.echo("type the beginning of a text; /exit or Ctrl-D ends, Ctrl-C stops an answer", err=True)
    for line in _lines():
        with _going_on():
            _show(generation(prompt_ids(line)))


def _lines() -> Iterator[str]:
    """What is typed, line by line without blank ones, edited with readline where Python has it."""
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    sign = "> " if sys.stdout.isatty() else ""
    while True:
        try:
            line = input(sign)
        except EOFError:
            click.echo(err=True)
            return
        if line.strip() == "/exit":
            return
        if line.strip():
            yield line


def _show(generation: Generation) -> str:
    """Stream an answer to stdout and return it; Ctrl-C ends it early."""
    before = signal.signal(signal.SIGINT, lambda *_: generation.cancel())
    pieces = []
    try:
        for piece in generation:
            pieces.append(piece)
            click.echo(piece, nl=False)
    finally:
        signal.signal(signal.SIGINT, before)
    click.echo()
    if note := NOTES.get(generation.finish_reason):
        click.echo(note, err=True)
    return "".join(pieces)


@contextmanager
def _going_on() -> Iterator[None]:
    """A line that fails, or is given up before its answer begins, does not end the conversation."""
    try:
        yield
    except EdgeError as error:
        show_error(error)
    except KeyboardInterrupt:
        click.echo(f"\n{NOTES['cancelled']}", err=True)
