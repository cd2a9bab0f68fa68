"""The endpoint under load: many clients at once, some of which leave in the middle of an answer.

    python benchmarks/speed/serve_load.py BUNDLE [--requests N] [--clients N]

Every fifth client reads one chunk of its stream and hangs up. The server's memory is read after a warm-up and
every hundred answers; a leak would show as growth. Writes benchmarks/results/serve_load.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.lib.results import RESULTS, provenance
from minigpt_edge_runtime.files import write_json

RESULT = RESULTS / "serve_load.json"
WARM_UP = 40
PROMPTS = ("The licensee shall", "Permission is hereby granted", "This agreement", "In no event shall")


def start(bundle: Path, threads: int) -> tuple[subprocess.Popen[str], int]:
    """The server's process and port, once it listens."""
    command = [sys.executable, "-m", "minigpt_edge", "serve", str(bundle), "--port", "0"]
    command += ["--threads", str(threads), "--queue", "8"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    for line in server.stderr:
        if found := re.search(r"http://[^ ]*:(\d+)", line):
            return server, int(found[1])
    raise SystemExit(f"the server did not start: {server.wait()}")


def ask(port: int, number: int, tokens: int) -> tuple[str, float, int]:
    """What became of a request, seconds, and how often it was refused because too many waited."""
    begun = time.perf_counter()
    for refused in range(1000):
        outcome = _ask(port, number, tokens)
        if outcome != "429":
            return outcome, time.perf_counter() - begun, refused
        time.sleep(0.02)
    return "429", time.perf_counter() - begun, 1000


def _ask(port: int, number: int, tokens: int) -> str:
    leaves = number % 5 == 4
    body = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": tokens, "stream": leaves, "seed": number}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            answer.read()
            return str(answer.status)
        if leaves:
            answer.read(1)
            return "left"
        text = json.loads(answer.read())["choices"][0]["text"]
        return "answered" if text else "empty"
    finally:
        connection.close()


def load(port: int, process: psutil.Process, requests: int, clients: int, tokens: int) -> dict[str, Any]:
    """Send the requests, `clients` at a time."""
    for number in range(WARM_UP):
        ask(port, number, tokens)
    memory, outcomes, seconds = [process.memory_info().rss], Counter[str](), []
    refused = 0
    with ThreadPoolExecutor(clients) as pool:
        for done in range(0, requests, 100):
            for outcome, took, times in pool.map(lambda n: ask(port, n, tokens), range(done, done + 100)):
                outcomes[outcome] += 1
                refused += times
                seconds += [took] if outcome == "answered" else []
            memory.append(process.memory_info().rss)
    ordered = sorted(seconds)
    return {
        "outcomes": dict(outcomes),
        "refused": refused,
        "answer_seconds": {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))]},
        "rss_bytes": memory,
        "open_files": process.num_fds(),
        "threads_of_process": process.num_threads(),
        "answers_again": ask(port, 0, tokens)[0],
    }


def main() -> None:
    """Start the server, load it, end it, write the result."""
    parser = argparse.ArgumentParser(description="The endpoint under load.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    server, port = start(given.bundle, given.threads)
    try:
        found = load(port, psutil.Process(server.pid), given.requests, given.clients, given.tokens)
    finally:
        server.terminate()
        status = server.wait(30)
    result = {
        "bundle": given.bundle.name,
        "requests": given.requests,
        "clients": given.clients,
        "tokens": given.tokens,
        **found,
        "exit_status": status,
        **provenance(),
    }
    write_json(given.out, result)
    print(json.dumps(found, indent=2))
    sys.exit(found["answers_again"] != "answered" or found["rss_bytes"][-1] > 1.1 * found["rss_bytes"][1])


if __name__ == "__main__":
    main()
