"""Models from a hub: fetched, reused without it, and never waited for."""

from __future__ import annotations

import functools
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from source_helpers import changed, tiny_adapter, tiny_model_dir

from minigpt_edge.models.base_model import default_model, resolve_model
from minigpt_edge.stages import hub
from minigpt_edge_runtime.errors import EdgeError, UsageError


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("hf") / "tiny-bf16", dtype="bfloat16")


@pytest.fixture(autouse=True)
def _fresh_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    hub._ask.cache_clear()
    yield
    hub._ask.cache_clear()


def _endpoint(monkeypatch: pytest.MonkeyPatch, home: Path, url: str) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))


@pytest.mark.whole
@pytest.mark.parametrize("answers", [False, None])
def test_a_hub_that_is_away_is_noticed_in_time_and_said_once(
    answers: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers is None:
            server.listen()  # connections are taken, but nothing is ever said
        _endpoint(monkeypatch, tmp_path / "hub", f"http://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(2):
            start = time.perf_counter()
            with pytest.raises(EdgeError, match="can't be fetched") as caught:
                resolve_model("someone/some-model")
            assert time.perf_counter() - start < 5
            assert default_model() in (caught.value.hint or "")
    assert capsys.readouterr().err.count("can't be reached") == 1


class _Hub(http.server.SimpleHTTPRequestHandler):
    """As much of a hub as a snapshot of one model needs."""

    folder: Path
    commit = "a" * 40

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = sorted(file.name for file in self.folder.iterdir())
        if path.startswith("/api/models/org/tiny"):
            about = {
                "id": "org/tiny",
                "sha": self.commit,
                "siblings": [{"rfilename": name} for name in files],
            }
            if "/tree/" in path:
                sizes = [(name, (self.folder / name).stat().st_size) for name in files]
                about = [{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in sizes]  # type: ignore[assignment]
            self._send(json.dumps(about).encode(), "application/json")
        elif path.startswith("/org/tiny/resolve/") and path.rpartition("/")[2] in files:
            self._send((self.folder / path.rpartition("/")[2]).read_bytes(), "application/octet-stream")
        elif path == "/":
            self._send(b"hub", "text/plain")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _send(self, body: bytes, kind: str) -> None:
        import hashlib

        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[functools.partial[None]]:
    servers = []

    def start(folder: Path) -> None:
        handler = type("Handler", (_Hub,), {"folder": folder})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        _endpoint(monkeypatch, tmp_path / "hub", f"http://127.0.0.1:{server.server_port}")

    yield functools.partial(start)
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_hub_model_is_fetched_and_serves_without_the_hub(
    serve: functools.partial[None], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(model_dir)
    with pytest.raises(UsageError, match="the hub has no model org/other"):
        resolve_model("org/other")
    model = resolve_model("org/tiny")
    assert (model.name, model.licence) == ("org/tiny", "apache-2.0")
    assert load_file(model.path / "model.safetensors").keys()
    assert resolve_model("org/tiny", offline=True).fingerprint == model.fingerprint
    with pytest.raises(EdgeError, match="working offline"):
        resolve_model("org/absent", offline=True)


def test_an_adapter_from_the_hub_is_merged(
    serve: functools.partial[None], model_dir: Path, tmp_path: Path
) -> None:
    serve(tiny_adapter(model_dir, tmp_path / "adapter"))
    model = resolve_model("org/tiny")
    assert model == resolve_model(str(model_dir), adapter="org/tiny")
    assert model.name == "org/tiny" and "merged into" in model.source


def test_a_foreign_hub_model_is_refused_before_its_weights_come(
    serve: functools.partial[None], model_dir: Path, tmp_path: Path
) -> None:
    serve(changed(model_dir, tmp_path / "other", "config.json", {"model_type": "mamba"}))
    with pytest.raises(EdgeError, match="'mamba' is not known"):
        resolve_model("org/tiny")
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
