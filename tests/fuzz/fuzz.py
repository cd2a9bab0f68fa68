"""Thousands of damaged files, and what must hold for each: a clear message or a sound result.

    python tests/fuzz/fuzz.py [--cases 20000] [--seed 0] [--only SUBJECT ...] [--out FILE.json]

A case is bad if anything but an EdgeError is raised, the interpreter dies or is killed after SECONDS, memory
grows by more than MEMORY, or a file outside the case's folder is written or a connection opened. Each subject
is read in a process of its own. Cases have numbers: `--only gguf --first 17 --cases 1` is one of them again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = [f"tests/{name}" for name in ("fuzz", "edge", "runtime", "tiny")]
sys.path[:0] = [str(ROOT / name) for name in (".", "export", "runtime", *TESTS)]

SECONDS = 60.0
MEMORY = 4 << 30  # bytes of address space beside what the libraries take


def cases(seed: int, subject: str, first: int, count: int, sample: Path) -> Iterator[tuple[int, str, bytes]]:
    """(number, file, its new content) of each case."""
    from mutations import mutate
    from subjects import SUBJECTS

    contents = {name: (sample / name).read_bytes() for name in SUBJECTS[subject].files}
    for number in range(first, first + count):
        chance = random.Random(f"{seed} {subject} {number}")
        name = chance.choice(sorted(contents))
        yield number, name, mutate(name, contents[name], chance)


def work(subject: str, sample: Path, seed: int, first: int, count: int) -> None:
    """Read the cases of a subject, one line of JSON on stdout for each."""
    from subjects import SUBJECTS

    from minigpt_edge_runtime.errors import EdgeError

    os.environ |= {"HF_HUB_OFFLINE": "1", "GGML_NO_BACKTRACE": "1"}
    one = SUBJECTS[subject]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # native libraries write there too
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINIGPT_EDGE_CACHE"] = f"{scratch}/cache"
        trespasses = guarded(Path(scratch))
        read_untouched(one, sample, Path(scratch))
        print(json.dumps("ready"), file=answers, flush=True)
        limit_memory()
        for number, name, content in cases(seed, subject, first, count, sample):
            folder = Path(scratch) / str(number)
            shutil.copytree(sample, folder / "sample")
            (folder / "sample" / name).write_bytes(content)
            outcome, begun = "sound", time.perf_counter()
            try:
                one.read(folder / "sample" / name)
            except EdgeError:
                outcome = "refused"
            except BaseException:
                outcome = traceback.format_exc()
            if trespasses:
                outcome = f"it touched {trespasses}"
                trespasses.clear()
            shutil.rmtree(folder)
            shutil.rmtree(f"{scratch}/cache", ignore_errors=True)
            seconds = round(time.perf_counter() - begun, 2)
            print(json.dumps([number, name, outcome, seconds]), file=answers, flush=True)


def read_untouched(one: Any, sample: Path, scratch: Path) -> None:
    """A sound sample must be read, or nothing of it would be tested; this imports the libraries too."""
    for name in one.files[:1]:
        shutil.copytree(sample, scratch / "sound" / "sample")
        one.read(scratch / "sound" / "sample" / name)


def guarded(allowed: Path) -> list[str]:
    """A list that gets what is written outside the folder, and every connection."""
    found: list[str] = []
    ok = (str(allowed), "/dev/", "/proc/self/", tempfile.gettempdir() + "/torchinductor_")

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            found.append(str(values[1]))
        if event == "open" and not isinstance(values[0], int):
            writes = values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = os.path.abspath(os.fsdecode(values[0]))
            if path == tempfile.gettempdir():  # a file without a name
                return
            if writes and not path.startswith(ok) and not path.endswith(".pyc") and ".pyc." not in path:
                found.append(path)
        if event in ("os.rename", "os.remove", "os.rmdir", "os.symlink", "os.mkdir"):
            path = os.path.abspath(os.fsdecode(values[1 if event in ("os.rename", "os.symlink") else 0]))
            relative_to_a_folder = values[-1] != -1
            if not path.startswith(ok) and not relative_to_a_folder and "__pycache__" not in path:
                found.append(f"{event} {path}")

    sys.addaudithook(hook)
    return found


def limit_memory() -> None:
    """Let allocations beyond MEMORY fail, so that a bomb is seen and does no harm."""
    import resource

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(
    subject: str, sample: Path, seed: int, first: int, count: int
) -> Iterator[tuple[int, str, str, float]]:
    """(number, file, outcome, seconds) of each case, from workers that are started again when one dies."""
    done = first
    while done < first + count:
        command = [sys.executable, __file__, "--worker", subject, "--sample", str(sample)]
        command += ["--seed", str(seed), "--first", str(done), "--cases", str(first + count - done)]
        with tempfile.TemporaryFile("w+") as said:
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, bufsize=1)
            assert worker.stdout
            begun, ended = done, ""
            while not ended:
                ready, _, _ = select.select([worker.stdout], [], [], SECONDS * (1 if begun == -1 else 3))
                line = worker.stdout.readline() if ready else ""
                if line and (answer := json.loads(line)) == "ready":
                    begun = -1
                elif line:
                    done = answer[0] + 1
                    yield answer
                else:
                    ended = "the interpreter died" if ready else f"no answer for {SECONDS:.0f} s"
                    worker.kill() if not ready else None
            worker.wait()
            if worker.returncode != 0:
                said.seek(0)
                if begun != -1:
                    raise SystemExit(f"{subject}: the sound sample can't be read: {said.read()[-2000:]}")
                yield [done, "?", f"{ended} ({worker.returncode}): {said.read()[-2000:]}", 0.0]
                done += 1


def fuzz(subjects: list[str], total: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Run so many cases, shared among the subjects; what came out."""
    from subjects import SUBJECTS

    shares = sum(SUBJECTS[name].share for name in subjects)
    result: dict[str, Any] = {"seed": seed, "subjects": {}, "bad": []}
    for name in subjects:
        count = math.ceil(total * SUBJECTS[name].share / shares)
        begun, outcomes, slowest = time.monotonic(), Counter[str](), 0.0
        with tempfile.TemporaryDirectory() as folder:
            sample = Path(folder) / name
            sample.mkdir()
            SUBJECTS[name].make(sample)
            for number, file, outcome, seconds in run(name, sample, seed, first, count):
                good = outcome in ("sound", "refused")
                outcomes[outcome if good else "bad"] += 1
                slowest = max(slowest, seconds)
                if not good:
                    result["bad"].append({"subject": name, "case": number, "file": file, "what": outcome})
                    print(f"{name} {number} {file}\n{outcome}\n", file=sys.stderr)
        took = round(time.monotonic() - begun, 1)
        result["subjects"][name] = {**outcomes, "seconds": took, "slowest": slowest}
        print(f"{name:>12}  {dict(outcomes)}, {took:.0f} s, slowest {slowest:.1f} s", file=sys.stderr)
    result["cases"] = sum(
        sum(count for what, count in one.items() if what in ("sound", "refused", "bad"))
        for one in result["subjects"].values()
    )
    return result


def main() -> None:
    """The command line; exit status 1 if a case was bad."""
    from subjects import SUBJECTS

    from benchmarks.lib.results import provenance

    parser = argparse.ArgumentParser(description="Read thousands of damaged files.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=list(SUBJECTS), help=argparse.SUPPRESS)
    parser.add_argument("--sample", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker, given.sample, given.seed, given.first, given.cases)
        return
    result = fuzz(given.only, given.cases, given.seed, given.first)
    if given.out:
        given.out.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")
    sys.exit(bool(result["bad"]))


if __name__ == "__main__":
    main()
