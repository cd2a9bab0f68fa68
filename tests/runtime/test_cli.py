from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from tiny_gguf import make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.cli import VERBS, cli
from minigpt_edge_runtime.click_group import EdgeGroup
from minigpt_edge_runtime.errors import EdgeError, UsageError


def call(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin)


def test_run_streams_text_to_stdout_and_talk_to_stderr(bundle: Path) -> None:
    first = call("run", bundle, "The software", "--max-tokens", 5, "--threads", 1, "--seed", 9)
    assert first.exit_code == 0, first.output
    assert "tokens/s" in first.stderr and "tokens/s" not in first.stdout
    again = call(
        "run",
        bundle / "model.gguf",
        "-",
        "--max-tokens",
        5,
        "--threads",
        1,
        "--seed",
        9,
        stdin="The software",
    )
    assert again.stdout == first.stdout


def test_run_json(bundle: Path) -> None:
    result = call("run", bundle, "Hi", "--chat", "--greedy", "--max-tokens", 3, "--threads", 1, "--json")
    answer = json.loads(result.stdout)
    assert answer["prompt"] == "Hi" and answer["tokens"] <= 3 and isinstance(answer["text"], str)
    assert answer["prompt_tokens"] > 5  # the template is around it


def test_run_chats_once_with_a_system_message(bundle: Path) -> None:
    options = ["--greedy", "--max-tokens", 3, "--threads", 1, "--json"]
    plain = json.loads(call("run", bundle, "Hi", "--chat", *options).stdout)
    result = call("run", bundle, "--chat", "--system", "Be brief", *options, stdin="Hi")
    answer = json.loads(result.stdout)
    assert answer["prompt"] == "Hi" and answer["prompt_tokens"] > plain["prompt_tokens"]
    assert answer["cached_tokens"] == 0 and answer["finish_reason"] in ("length", "end")


def test_run_gives_the_template_its_variables(tmp_path: Path, tokenizer: Tokenizer) -> None:
    template = "{{ messages[0].content }}{% if enable_thinking is false %}without a thought{% endif %}"
    path = make_gguf(tmp_path / "a.gguf", tokenizer, chat_template=template)
    options = ["--chat", "--max-tokens", 1, "--threads", 1, "--json"]
    counts = []
    for given in ("{}", '{"enable_thinking": true}', '{"enable_thinking": false, "messages": 1}'):
        result = call("run", path, "Hi", "--chat-template-kwargs", given, *options)
        counts.append(json.loads(result.stdout)["prompt_tokens"])
    assert counts[0] == counts[1] < counts[2]


def test_verify_inspect(bundle: Path) -> None:
    assert json.loads(call("verify", bundle, "--threads", 1, "--json").stdout)["ok"] is True
    assert "ok   checksums" in call("verify", bundle, "--threads", 1).stdout
    assert json.loads(call("inspect", bundle, "--json").stdout)["kind"] == "bundle"
    assert "tiny" in call("inspect", bundle / "model.gguf").stdout


def test_verify_exits_1_when_a_file_changed(bundle: Path) -> None:
    (bundle / "report.json").write_text("{}")
    result = call("verify", bundle, "--threads", 1, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["ok"] is False and "error:" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "none.gguf", "x"], 1, "error: none.gguf does not exist\nhint: check the path"),
        (["run", "none.gguf", "x", "--system", "y"], 2, "error: --system needs --chat"),
        (["run", "none.gguf", "x", "--chat-template-kwargs", "{}"], 2, "--chat-template-kwargs needs --chat"),
        (["run", "none.gguf", "x", "--chat", "--chat-template-kwargs", "{"], 2, "is no JSON object: {"),
        (["run", "none.gguf", "x", "--chat", "--chat-template-kwargs", "[]"], 2, "is no JSON object: []"),
        (["run", "none.gguf", "x", "--greedy", "--temperature", "0.5"], 2, "contradict each other"),
        (["run", "none.gguf", "x", "--greedy", "--repeat-penalty", "1"], 2, "contradict each other"),
        (["bench", "none.gguf", "-o", "."], 1, "error: . is a directory"),
        (["inspect", "none"], 1, "error: none does not exist"),
        (["bench", "none.gguf"], 1, "error: none.gguf does not exist"),
        (["dance"], 2, "no command 'dance'"),
        (["run", "--max-tokens", "0", "a", "b"], 2, "--max-tokens"),
    ],
)
def test_errors_are_a_message_and_a_code(args: list[str], code: int, message: str) -> None:
    result = call(*args)
    assert result.exit_code == code and message in result.stderr and result.stdout == ""
    assert "Traceback" not in result.output


def test_the_group_maps_errors_to_exit_codes() -> None:
    group = EdgeGroup("g", interrupted="interrupted; go on with the same command")

    @group.command()
    @click.argument("how")
    def fail(how: str) -> None:
        errors = {
            "edge": EdgeError("broken", "mend it"),
            "usage": UsageError("wrong"),
            "ctrl-c": KeyboardInterrupt(),
        }
        if how in errors:
            raise errors[how]
        raise ZeroDivisionError

    runner = CliRunner()
    assert (result := runner.invoke(group, ["fail", "edge"])).exit_code == 1
    assert result.stderr == "error: broken\nhint: mend it\n"
    assert runner.invoke(group, ["fail", "usage"]).exit_code == 2
    assert (result := runner.invoke(group, ["fail", "ctrl-c"])).exit_code == 130
    assert result.stderr.strip() == "interrupted; go on with the same command"
    assert isinstance(runner.invoke(group, ["fail", "bug"]).exception, ZeroDivisionError)


def test_help_lists_every_verb_with_its_line_of_help() -> None:
    text = call("--help").stdout
    for verb, entry in VERBS.items():
        assert verb in text and entry.rsplit(":", 1)[1][:30] in text
        assert call(verb, "--help").exit_code == 0
