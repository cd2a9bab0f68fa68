"""Builds that are killed, run out of disk, or run twice at once: nothing is lost, and the result is the same.

    python tests/reliability/kills.py [--kills 50] [--only PART ...] [--out FILE.json]

kills: a build of a tiny model is ended at moments spread over all that it writes: at the opening of a file,
at a rename, or a little later, in the middle of writing; by SIGKILL, every fifth by Ctrl-C. Resumed, it must
end with the files of a build that nobody disturbed.
disk: the same on a file system that is too small (tmpfs, which needs root) and then is not; and on one that
fills up while the build writes, at moments spread over all that it writes.
twice: two builds of the same in one work directory at once; and with other work directories.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name) for name in (".", "export", "runtime", "tests", "tests/tiny")]

from tiny_build import SMALL, write_corpus, write_model  # noqa: E402

from benchmarks.lib.results import provenance  # noqa: E402

# Every Python process reads this when it starts; the first one counts, and dies where it is told to, or (0)
# fills the file system.
HOOK = """
import os, signal, sys, threading
log, at, number = os.environ.pop("WRITES", None), int(os.environ.pop("DIE_AT", -1)), 0
how = int(os.environ.pop("DIE_BY", 9))
def hook(event, values):
    global number
    if event == "open" and isinstance(values[0], str) and values[2] & (os.O_WRONLY | os.O_RDWR):
        path = values[0]
    elif event in ("os.rename", "os.mkdir"):
        path = values[0]
    else:
        return
    if not str(path).startswith(os.environ["WATCHED"]) or str(path) == log or "/runs/" in str(path):
        return
    number += 1
    with open(log, "a") as file:
        file.write(f"{event} {path}\\n")
    if number == at and how == 0:
        where = os.statvfs(os.environ["WATCHED"])
        full = os.open(os.environ["WATCHED"] + "/runs/full", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(full, 0, where.f_bavail * where.f_frsize)
        os.close(full)
    elif number == at:
        if number % 2 or how != signal.SIGKILL:
            os.kill(os.getpid(), how)
        else:
            threading.Timer(0.001 * (number % 7), lambda: os.kill(os.getpid(), how)).start()
if log:
    sys.addaudithook(hook)
"""

FILLED = 12  # builds whose disk fills up


class Place:
    """A folder with a tiny model and corpus, in which builds are run and compared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_model(folder / "model", write_corpus(folder / "corpus"))
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)

    def command(self, *options: str) -> list[str]:
        given = ["--model", str(self.folder / "model"), "--corpus", str(self.folder / "corpus")]
        given += ["--no-baseline", "--target", "onnx-int8", "--out", "out"]
        return [sys.executable, "-m", "minigpt_edge", "build", *given, *SMALL, *options]

    def start(self, run: Path, **hook: str) -> subprocess.Popen[str]:
        """A build in the folder `run`, which holds its cache and its bundle."""
        run.mkdir(exist_ok=True)
        paths = [str(self.folder / "hook")] if hook else []
        paths += [str(ROOT / part) for part in (".", "export", "runtime")]
        environment = {**os.environ, "MINIGPT_EDGE_CACHE": str(run / "cache"), **hook}
        environment |= {"PYTHONPATH": os.pathsep.join(paths), "WATCHED": str(run)}
        return subprocess.Popen(
            self.command(), cwd=run, env=environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, run: Path) -> dict[str, str]:
        """Run the build to its end; the sha256 of every file that ships but for what holds times."""
        process = self.start(run)
        said = process.communicate(timeout=600)[1]
        if process.returncode:
            raise SystemExit(f"the build did not resume: {said}")
        return digests(run / "out")


def digests(bundle: Path) -> dict[str, str]:
    wanted = [*bundle.glob("*.gguf"), *bundle.glob("onnx-*/*")]
    wanted += [bundle / "plan.json", bundle / "tokenizer.json"]
    return {
        path.relative_to(bundle).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(wanted)
    }


def count_moments(place: Place, expected: dict[str, str]) -> list[str]:
    """What a build that nobody disturbs writes, in order."""
    log, whole = place.folder / "writes", place.folder / "counted"
    log.unlink(missing_ok=True)
    process = place.start(whole, WRITES=str(log))
    process.communicate(timeout=600)
    assert process.returncode == 0 and digests(whole / "out") == expected
    shutil.rmtree(whole)
    return [within(whole, line) for line in log.read_text().splitlines()]


def within(run: Path, said: str) -> str:
    """What was said, without where the build's folder and its cache are."""
    return said.replace(f"{run}/", "").replace("cache/", "")


def moment(index: int, count: int, moments: list[str]) -> int:
    """The number of one of `count` moments spread over all."""
    return 1 + index * (len(moments) - 1) // max(1, count - 1)


def kills(place: Place, count: int, expected: dict[str, str]) -> dict[str, Any]:
    """End builds at `count` of the moments at which one writes."""
    log, moments = place.folder / "writes", count_moments(place, expected)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        at = moment(index, count, moments)
        how = signal.SIGINT if index % 5 == 4 else signal.SIGKILL
        run = place.folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        log.unlink(missing_ok=True)
        begun = time.monotonic()
        process = place.start(run, WRITES=str(log), DIE_AT=str(at), DIE_BY=str(int(how)))
        said = process.communicate(timeout=600)[1]
        lived = time.monotonic() - begun
        finished = [path for path in (run / "cache" / "work").glob("*-*") if path.suffix == ""]
        same = place.finish(run) == expected
        row = {
            "moment": at,
            "what": moments[at - 1],
            "signal": how.name,
            "status": process.returncode,
            "seconds": round(lived, 2),
            "kept": sorted(path.name.rpartition("-")[0] for path in finished),
        }
        clean = how == signal.SIGKILL or (process.returncode == 130 and "Traceback" not in said)
        rows.append({**row, "ok": same and clean})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {"moments": len(moments), "kills": rows}


def disk(place: Place, expected: dict[str, str]) -> dict[str, Any]:
    """Builds on a file system that is too small, by several degrees, and then is made large enough."""
    needed = sum(p.stat().st_size for p in (place.folder / "whole").rglob("*") if p.is_file())
    run, rows = place.folder / "small", []
    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        if not mounted(run, int(needed * share)):
            return {"skipped": "mounting a tmpfs needs root"}
        try:
            error, clear = failed_for_space(place.start(run))
            subprocess.run(["mount", "-o", f"remount,size={needed * 3}", str(run)], check=True)
            same = place.finish(run) == expected
        finally:
            unmounted(run)
        rows.append({"share": share, "said": within(run, error), "ok": clear and same})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return {"bytes": needed, "runs": rows, "filled": filled(place, run, needed * 3, expected)}


def filled(place: Place, run: Path, size: int, expected: dict[str, str]) -> list[dict[str, Any]]:
    """Builds whose file system fills up just before a write, and then has room again."""
    log, moments, rows = place.folder / "writes", count_moments(place, expected), []
    for index in range(FILLED):
        at = moment(index + 1, FILLED + 2, moments)
        log.unlink(missing_ok=True)
        mounted(run, size)
        (run / "runs").mkdir()
        try:
            error, clear = failed_for_space(place.start(run, WRITES=str(log), DIE_AT=str(at), DIE_BY="0"))
            kept = {p.name for p in (run / "cache" / "work").glob("*-*") if p.suffix == ""}
            (run / "runs" / "full").unlink()
            same = place.finish(run) == expected
            there = kept <= {p.name for p in (run / "cache" / "work").glob("*-*")}
        finally:
            unmounted(run)
        said = {"what": moments[at - 1], "said": within(run, error)}
        rows.append({"moment": at, **said, "ok": clear and same and there})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def mounted(run: Path, size: int) -> bool:
    """Whether a file system of so many bytes could be put at an empty folder."""
    run.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        return True
    run.rmdir()
    return False


def unmounted(run: Path) -> None:
    subprocess.run(["umount", str(run)], check=True)
    run.rmdir()


def failed_for_space(process: subprocess.Popen[str]) -> tuple[str, bool]:
    """The error that a build ended with, and whether that is one clear message about space."""
    said = process.communicate(timeout=600)[1]
    error = next((line for line in said.splitlines() if line.startswith("error:")), "")
    clear = process.returncode == 1 and "Traceback" not in said
    return error, clear and ("no space left" in said or "are free" in said)


def twice(place: Place, expected: dict[str, str]) -> dict[str, Any]:
    """The same build in another work directory, and two at once in one."""
    again = place.finish(place.folder / "again") == expected
    run = place.folder / "both"
    run.mkdir()
    first = place.start(run)
    second = place.start(run)
    said = [process.communicate(timeout=600)[1] for process in (first, second)]
    codes = sorted([first.returncode, second.returncode])
    refused = sum("another build is making out" in text for text in said) == 1
    same = digests(run / "out") == expected
    return {
        "repeated": {"ok": again},
        "at once": {"statuses": codes, "ok": codes == [0, 1] and refused and same},
    }


def main() -> None:
    """The command line; exit status 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description="Builds that are disturbed.")
    parser.add_argument("--kills", type=int, default=50)
    parts = ["kills", "disk", "twice"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background shells have it ignored
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        expected = place.finish(place.folder / "whole")
        if "twice" in given.only:
            result["twice"] = twice(place, expected)
        if "disk" in given.only:
            result["disk"] = disk(place, expected)
        if "kills" in given.only:
            result["kills"] = kills(place, given.kills, expected)
    checks = [row["ok"] for row in result.get("kills", {}).get("kills", [])]
    checks += [row["ok"] for part in ("runs", "filled") for row in result.get("disk", {}).get(part, [])]
    checks += [row["ok"] for row in result.get("twice", {}).values()]
    result["checks"], result["broken"] = len(checks), checks.count(False)
    if given.out:
        given.out.write_text(json.dumps({**result, **provenance()}, indent=2) + "\n")
    print(f"{len(checks)} checks, {result['broken']} broken", file=sys.stderr)
    sys.exit(bool(result["broken"]))


if __name__ == "__main__":
    main()
