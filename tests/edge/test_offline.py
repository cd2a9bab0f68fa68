"""A build in offline mode opens no socket of the internet, in this process or in those it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT
from tiny_build import SMALL, write_corpus, write_model

pytestmark = pytest.mark.whole

# every Python process reads this when it starts
WATCH = """
import os, sys
def watch(event, values):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo", "socket.bind"):
        if event == "socket.__new__" and values[1] not in (2, 10):  # AF_INET, AF_INET6
            return
        with open(os.environ["SOCKETS"], "a") as file:
            file.write(f"{event} {values[1:]}\\n")
sys.addaudithook(watch)
with open(os.environ["SOCKETS"] + ".processes", "a") as file:
    file.write("started\\n")
"""


def run(folder: Path, *command: str) -> tuple[str, int]:
    """What a program did with sockets, and how many Python processes it was."""
    watch = folder / "watch"
    watch.mkdir(exist_ok=True)
    (watch / "sitecustomize.py").write_text(WATCH)
    log = folder / "sockets"
    for path in (log, folder / "sockets.processes"):
        path.unlink(missing_ok=True)
    paths = [str(watch), *(str(ROOT / part) for part in (".", "export", "runtime"))]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    environment |= {
        "MINIGPT_EDGE_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(paths),
        "SOCKETS": str(log),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    processes = (folder / "sockets.processes").read_text().count("started")
    return (log.read_text() if log.exists() else ""), processes


def test_an_offline_build_opens_no_socket(tmp_path: Path) -> None:
    write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"))
    given = ("--model", "./model", "--corpus", "corpus", "--out", "out", "--offline", "--no-recover")
    touched, processes = run(tmp_path, "-m", "minigpt_edge", "build", *given, *SMALL)
    assert touched == "" and processes >= 3, "the build measures in processes of its own"


def test_a_socket_would_be_seen(tmp_path: Path) -> None:
    """Otherwise the other test proves nothing."""
    code = "import socket, subprocess, sys; socket.socket().close(); "
    code += "subprocess.run([sys.executable, '-c', 'import socket; socket.socket().close()'])"
    touched, processes = run(tmp_path, "-c", code)
    assert touched.count("socket.__new__") == 2 and processes == 2
