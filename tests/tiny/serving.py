"""The real server in a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import openai

import minigpt_edge_runtime

COMMAND = "from minigpt_edge_runtime.cli import main; main()"


# A big model's pace, and a shorter time to end answers in when the server stops.
SLOW = """
import time
from minigpt_edge_runtime.engines.gguf import LlamaEngine
from minigpt_edge_runtime.serve import server
quick = LlamaEngine.eval
LlamaEngine.eval = lambda self, tokens: time.sleep(0.02) or quick(self, tokens)
server.GRACE = 0.2
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int
    log: str

    def client(self, **options: Any) -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, **{"api_key": "none", "max_retries": 0, **options})

    @cached_property
    def openai(self) -> openai.OpenAI:
        """A client for many requests: each new one reads all certificates."""
        return self.client()

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, dict(reply.getheaders()), json.loads(content or b"null")


@contextmanager
def serving(model: Path, *options: object, slow: bool = False, **environment: str) -> Iterator[Server]:
    source = str(Path(minigpt_edge_runtime.__file__).parent.parent)
    code = (SLOW if slow else "") + COMMAND
    args = ["serve", model, "--port", 0, "--threads", 1, *options]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": source, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    log = ""
    try:
        while " at http://" not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        yield Server(process, int(log.rpartition("/v1")[0].rpartition(":")[2]), log)
    finally:
        process.kill()
        process.communicate()
