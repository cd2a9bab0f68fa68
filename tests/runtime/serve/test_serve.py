"""The real server in a process of its own, asked by the real openai client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from serving import COMMAND, Server, serving
from tiny_gguf import chain_model, make_gguf
from tokenizers import Tokenizer

import minigpt_edge_runtime
from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.serve.server import listen

pytestmark = pytest.mark.whole

SAID = "漢é🙂 licence"
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"repeat_penalty": 1}}
ASK: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def tiny(model: Path) -> Iterator[Server]:
    with serving(model, "--max-tokens", 60, "--max-request-bytes", 20_000) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Says token 50 after itself, as long as there is room."""
    return make_gguf(tmp_path_factory.mktemp("endless") / "endless.gguf", tokenizer, chain={50: 50})


def text_of(stream: Any) -> str:
    return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_models_and_health(tiny: Server) -> None:
    client = tiny.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "minigpt-edge"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
        client.models.retrieve("gpt-4")
    assert tiny.ask("GET", "/health")[::2] == (200, {"status": "ok"})


def test_a_stream_says_what_the_whole_answer_says(tiny: Server) -> None:
    client = tiny.client()
    settings: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "seed": 5, "temperature": 1.5}
    whole = client.completions.create(prompt="The software", **settings)
    *chunks, last = client.completions.create(
        prompt="The software", stream=True, stream_options={"include_usage": True}, **settings
    )
    assert text_of(chunks) == whole.choices[0].text != ""
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage and last.usage and last.usage.total_tokens == whole.usage.total_tokens
    assert whole.usage.prompt_tokens + whole.usage.completion_tokens == whole.usage.total_tokens
    for used in (whole.usage, last.usage):  # a seed wants the same answer whatever is cached
        assert used.prompt_tokens_details and used.prompt_tokens_details.cached_tokens == 0
    assert client.completions.create(prompt="The software", **{**settings, "seed": 6}) != whole
    chat = client.chat.completions.create(messages=ASK, **settings)
    parts = list(client.chat.completions.create(messages=ASK, stream=True, **settings))
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said == chat.choices[0].message.content and parts[0].choices[0].delta.role == "assistant"
    assert chat.choices[0].message.role == "assistant" and {part.id for part in parts} == {parts[0].id}


def test_characters_stay_whole_and_stops_are_obeyed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("assistant\n").ids[-1:] + tokenizer.encode(SAID).ids + [2]
    talker = chain_model(tmp_path / "talker.gguf", tokenizer, ids)
    with serving(talker) as server:
        chats = server.client().chat.completions
        settings: dict[str, Any] = {"model": "talker", "messages": ASK, **GREEDY}
        parts = list(chats.create(stream=True, **settings))
        pieces = [part.choices[0].delta.content for part in parts if part.choices[0].delta.content]
        assert pieces[:3] == ["漢", "é", "🙂"] and "".join(pieces) == SAID
        whole = chats.create(**settings)
        assert whole.choices[0].message.content == SAID and whole.choices[0].finish_reason == "stop"
        stopped = chats.create(stop=["zzz", "🙂 li"], **settings)
        assert stopped.choices[0].message.content == "漢é" and stopped.choices[0].finish_reason == "stop"
        cut = chats.create(max_completion_tokens=3, **settings)
        assert cut.choices[0].finish_reason == "length" and cut.usage and cut.usage.completion_tokens == 3
        again = chats.create(**settings)
        assert again.usage and again.usage.prompt_tokens_details
        assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_errors_are_openais(tiny: Server, tmp_path: Path, tokenizer: Tokenizer) -> None:
    client = tiny.client()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 1500}])
    assert caught.value.code == "context_length_exceeded" and caught.value.param == "messages"
    assert "the context holds 1,024" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="token ids lie between 0 and"):
        client.completions.create(model="tiny", prompt=[5, 100_000])
    with pytest.raises(openai.BadRequestError, match="best_of is not supported"):
        client.completions.create(model="tiny", prompt="Hi", best_of=2)
    with pytest.raises(openai.APIStatusError, match="larger than 20,000 bytes") as large:
        client.completions.create(model="tiny", prompt="x" * 30_000)
    assert large.value.status_code == 413
    with serving(make_gguf(tmp_path / "plain.gguf", tokenizer, chat_template=None)) as plain:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            plain.client().chat.completions.create(model="plain", messages=ASK)
        assert plain.client().completions.create(model="plain", prompt="Hi", max_tokens=2).choices


def test_pages_of_other_origins_are_kept_out(tiny: Server) -> None:
    for host in ("localhost", f"127.0.0.1:{tiny.port}", "[::1]:80", "LOCALHOST:1"):
        assert tiny.ask("GET", "/health", Host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[", ""):
        status, headers, body = tiny.ask("GET", "/v1/models", Host=host)
        assert status == 403 and body["error"]["code"] == "host_not_allowed"
        assert not [name for name in headers if name.lower().startswith("access-control")]
    body = json.dumps({"prompt": "Hi"}).encode()
    assert tiny.ask("POST", "/v1/completions", body, Content_Type="text/plain")[0] == 415
    assert tiny.ask("OPTIONS", "/v1/completions")[0] == 405
    status, _, answer = tiny.ask("GET", "/v1/nothing")
    assert status == 404 and "/v1/nothing" in answer["error"]["message"]
    assert tiny.ask("POST", "/v1/completions", b'{"\\ud800": 1}', Content_Type="application/json")[0] == 400


def test_a_key_is_asked_for(model: Path) -> None:
    with serving(model, MINIGPT_EDGE_API_KEY="söcret") as server:
        header = "Bearer söcret".encode().decode("latin-1")
        for given, status in ((header, 200), ("Bearer wrong", 401), ("", 401), ("söcret", 401)):
            found, _, body = server.ask("GET", "/v1/models", Authorization=given)
            assert found == status, body
        with pytest.raises(openai.AuthenticationError, match="API key"):
            server.client().models.list()
        assert server.ask("GET", "/health")[0] == 200


def test_other_machines_are_warned_of(model: Path) -> None:
    with serving(model, "--host", "0.0.0.0") as server:
        assert "warning: whoever reaches 0.0.0.0 can use this server" in server.log
        assert server.ask("GET", "/v1/models", Host="device.example")[0] == 200
    with serving(model, "--host", "0.0.0.0", "--api-key", "k") as server:
        assert "warning" not in server.log


def outcomes(*calls: Callable[[], Any]) -> list[Any]:
    """What calls made at the same time return or raise."""
    results: list[Any] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            results[number] = calls[number]()
        except openai.APIError as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_requests_at_the_same_time_get_their_own_answers(tiny: Server) -> None:
    client = tiny.client()

    def asking(prompt: str) -> Callable[[], str]:
        settings: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 15, **GREEDY}
        return lambda: client.completions.create(**settings).choices[0].text

    prompts = ["The software", "Permission", "The copyright", "copies"]
    alone = [asking(prompt)() for prompt in prompts]
    assert len(set(alone)) > 1
    assert outcomes(*map(asking, prompts)) == alone


def test_a_full_queue_refuses_and_a_client_that_leaves_makes_room(endless: Path) -> None:
    long: dict[str, Any] = {"model": "endless", "prompt": [50], "max_tokens": 900, **GREEDY}
    with serving(endless, "--queue", 1, "--max-tokens", 900, slow=True) as server:
        client = server.client()
        running = client.completions.create(stream=True, **long)
        next(iter(running))
        impatient = server.client(timeout=1).completions
        found = outcomes(*[lambda: impatient.create(**long)] * 3)
        assert sorted(type(error).__name__ for error in found) == [
            "APITimeoutError",  # it waited in the queue, and its place is free again
            "RateLimitError",
            "RateLimitError",
        ]
        for _ in range(50):  # a busy machine sees only later that the client left
            waiting = outcomes(lambda: impatient.create(**long))
            if not isinstance(waiting[0], openai.RateLimitError):
                break
            time.sleep(0.1)
        assert isinstance(waiting[0], openai.APITimeoutError)
        running.close()
        after = client.completions.create(**{**long, "prompt": [50] * 900, "max_tokens": 1})
        assert after.usage and after.usage.prompt_tokens_details
        cached = after.usage.prompt_tokens_details.cached_tokens
        assert cached and cached < 890  # where the first answer was cut off: it would have had 900 tokens


def test_time_is_limited(endless: Path) -> None:
    long: dict[str, Any] = {"model": "endless", "prompt": [50], "max_tokens": 500, **GREEDY}
    with serving(endless, "--timeout", 1.5, slow=True) as server:
        client = server.client(max_retries=2)
        with pytest.raises(
            openai.InternalServerError, match=r"longer than this server's 1.5 seconds"
        ) as late:
            client.completions.create(**long)
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"longer than this server's 1.5 seconds"):
            text_of(client.completions.create(stream=True, **long))
        assert client.completions.create(**{**long, "max_tokens": 2}).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(endless: Path, stop: signal.Signals) -> None:
    with serving(endless, slow=True) as server:
        running = server.client().completions.create(
            model="endless", prompt=[50], max_tokens=500, stream=True, **GREEDY
        )
        next(iter(running))
        server.process.send_signal(stop)
        with pytest.raises(openai.APIError, match="the server stops"):
            text_of(running)
        _, log = server.process.communicate(timeout=30)
    assert server.process.returncode == 0 and log == "stopped\n"


def test_what_can_not_be_served(model: Path) -> None:
    def failure(*args: object) -> str:
        result = CliRunner().invoke(cli, ["serve", *map(str, args)])
        assert result.exit_code in (1, 2) and result.stdout == "" and "Traceback" not in result.output
        return result.stderr

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"error: port {port} is in use\nhint: choose another --port" in failure(model, "--port", port)
    assert "error: nowhere.invalid is not an address" in failure(model, "--host", "nowhere.invalid")
    assert "error: --api-key is empty" in failure(model, "--api-key", "")
    assert "does not exist" in failure("none.gguf")
    for library in ("uvicorn", "starlette"):
        code = f"import sys; sys.modules[{library!r}] = None; {COMMAND}"
        command = [sys.executable, "-c", code, "serve", str(model)]
        source = str(Path(minigpt_edge_runtime.__file__).parent.parent)
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True
        )
        assert done.returncode == 1 and 'pip install "minigpt-edge-runtime[serve]"' in done.stderr
