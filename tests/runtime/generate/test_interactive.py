"""The conversation at a terminal, with the real command on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny_gguf import chain_model, make_gguf
from tokenizers import Tokenizer

import minigpt_edge_runtime

pty = pytest.importorskip("pty")  # there is none on Windows
SAID = "漢é🙂 licence"


class Terminal:
    """A command whose stdin and stdout are a terminal; its stderr is kept apart."""

    def __init__(self, *args: object) -> None:
        self._end, theirs = pty.openpty()
        self._shown = b""
        source = str(Path(minigpt_edge_runtime.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minigpt_edge_runtime.cli", *map(str, args)],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env={**os.environ, "PYTHONPATH": source, "TERM": "dumb", "PYTHONUTF8": "1"},
        )
        os.close(theirs)

    def read_until(self, mark: str) -> str:
        """What is shown next, up to and with `mark`."""
        while mark.encode() not in self._shown:
            ready, _, _ = select.select([self._end], [], [], 60)
            assert ready, f"{mark!r} did not come, but {self._shown!r}"
            self._shown = (self._shown + os.read(self._end, 64)).replace(b"\r\n", b"\n")
        before, found, self._shown = self._shown.partition(mark.encode())
        return (before + found).decode()

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until the command ends: Python misses one that comes while it shows the prompt."""
        for _ in range(20):
            self.type("\x03")
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return

    def end(self) -> tuple[int, str]:
        """The exit code and what was written to stderr."""
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors.decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


def _take_terminal() -> None:
    """Make stdin the controlling terminal, which turns Ctrl-C into a signal."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


@contextmanager
def terminal(*args: object) -> Iterator[Terminal]:
    shown = Terminal(*args, "--threads", 1)
    try:
        yield shown
    finally:
        shown.close()


@pytest.fixture
def talker(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Answers SAID, whatever is asked."""
    ids = tokenizer.encode("assistant\n").ids[-1:] + tokenizer.encode(SAID).ids + [2]
    return chain_model(tmp_path / "talker.gguf", tokenizer, ids)


def test_a_chat_remembers_forgets_and_ends(talker: Path) -> None:
    with terminal("run", talker, "--greedy", "--context-length", 128) as shown:
        for question in ("Hi", "And?", "漢"):
            shown.read_until("> ")
            shown.type(question + "\n")
            assert SAID + "\n" in shown.read_until(SAID + "\n")
        shown.read_until("> ")
        shown.type("/reset\n\n \n/exit\n")
        code, errors = shown.end()
    assert code == 0 and "[forgotten]" in errors and "Traceback" not in errors
    assert "/reset forgets" in errors and "error" not in errors


def test_the_oldest_turns_go_when_the_context_is_full(talker: Path) -> None:
    with terminal("run", talker, "--greedy", "--context-length", 128) as shown:
        for _ in range(3):
            shown.read_until("> ")
            shown.type("software " * 6 + "\n")
            shown.read_until(SAID + "\n")
        shown.read_until("> ")
        shown.type("software " * 200 + "\n")  # too long by itself: refused, and the chat goes on
        shown.read_until("> ")
        shown.type("Hi\n")
        shown.read_until(SAID + "\n")
        shown.read_until("> ")
        shown.type("\x04")
        code, errors = shown.end()
    assert code == 0 and "[the context is full: forgot the oldest 1 turns]" in errors
    assert "error: the prompt has" in errors and "the context holds 128" in errors


def endless(folder: Path, tokenizer: Tokenizer) -> tuple[Path, str]:
    """A model that repeats one word, and the word."""
    start = tokenizer.encode("assistant\n").ids[-1]
    long = max((text for text in tokenizer.get_vocab() if text.startswith("Ġ")), key=len)
    token, word = tokenizer.token_to_id(long), long.replace("Ġ", " ")
    assert len(word) > 6  # the answer does not fit into the terminal's buffer, so it can't end before Ctrl-C
    return make_gguf(folder / "endless.gguf", tokenizer, chain={start: token, token: token}), word


def test_ctrl_c_stops_an_answer_only(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, word = endless(tmp_path, tokenizer)
    with terminal("run", path, "--greedy", "--max-tokens", 900) as shown:
        shown.read_until("> ")
        shown.type("Hi\n")
        shown.read_until(word * 3)
        shown.type("\x03")
        rest = shown.read_until("> ")
        assert len(rest) < 900 * len(word)
        shown.type("/exit\n")
        code, errors = shown.end()
    assert code == 0 and "[stopped]" in errors and "Traceback" not in errors


@pytest.mark.slow  # Python's readline can miss a signal that comes while it shows the prompt
def test_ctrl_c_at_the_prompt_ends_the_command(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path, _ = endless(tmp_path, tokenizer)
    with terminal("run", path, "--greedy") as shown:
        shown.read_until("> ")
        shown.interrupt()
        code, errors = shown.end()
    assert code == 130 and "interrupted" in errors and "Traceback" not in errors


def test_without_a_template_each_line_is_continued(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("X").ids + tokenizer.encode(SAID).ids + [2]
    path = chain_model(tmp_path / "plain.gguf", tokenizer, ids, chat_template=None)
    with terminal("run", path, "--greedy", "--max-tokens", 3) as shown:
        for _ in range(2):
            shown.read_until("> ")
            shown.type("The X\n")
            assert "漢" in shown.read_until("漢\n")
        shown.read_until("> ")
        shown.type("/exit\n")
        code, errors = shown.end()
    assert code == 0 and "[cut after --max-tokens]" in errors and "/reset" not in errors


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--json"], 2, "error: --json needs a prompt"),
        (["--system", "Be brief"], 1, "error: this model has no chat template"),
    ],
)
def test_what_a_conversation_can_not_have(
    tmp_path: Path, tokenizer: Tokenizer, options: list[str], code: int, message: str
) -> None:
    path = make_gguf(tmp_path / "a.gguf", tokenizer, chat_template=None)
    with terminal("run", path, *options) as shown:
        found, errors = shown.end()
    assert found == code and message in errors and "Traceback" not in errors
