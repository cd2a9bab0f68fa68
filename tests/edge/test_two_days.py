"""Equal builds on two days are equal bytes, but for the report, which says when it was made and how fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT
from tiny_build import write_corpus, write_model

pytestmark = pytest.mark.slow

YEARS = 16
# Every program that asks the C library for the time of day gets a later one.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += atol(getenv("LATER_SECONDS"));
  return code;
}
int gettimeofday(struct timeval *now, void *zone) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  now->tv_sec = found.tv_sec;
  now->tv_usec = found.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *now) {
  struct timespec found;
  clock_gettime(CLOCK_REALTIME, &found);
  if (now) *now = found.tv_sec;
  return found.tv_sec;
}
"""
DATED = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') }}"
    "{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
MEASURED = {"report.json", "report.html", "README.md"}  # speeds; the first two also when they were made
SUMS = "manifest.json"  # of all files


def build(folder: Path, later: int) -> dict[str, bytes]:
    """The files of a bundle that is built so many seconds later."""
    (folder / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c", "-ldl"], cwd=folder, check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "export", "runtime")),
        "MINIGPT_EDGE_CACHE": str(folder / f"cache-{later}"),
        "LD_PRELOAD": str(folder / "clock.so"),
        "LATER_SECONDS": str(later),
    }
    given = ["--model", "./model", "--corpus", "corpus", "--out", "bundle", "--work", f"work-{later}"]
    given += ["--target", "gguf-q4", "--target", "onnx-int4", "--no-baseline", "--threads", "1"]
    given += ["--sparsity", "0.2", "--min-count", "1", "--calibration-tokens", "2048"]
    given += ["--recover-tokens", "8192"]
    command = [sys.executable, "-m", "minigpt_edge", "build", *given]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    bundle = Path(shutil.move(folder / "bundle", folder / f"bundle-{later}"))
    return {str(p.relative_to(bundle)): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def test_a_bundle_does_not_tell_the_day_it_was_built(tmp_path: Path) -> None:
    write_model(tmp_path / "model", write_corpus(tmp_path / "corpus"), blocks=2)
    (tmp_path / "model" / "chat_template.jinja").write_text(DATED)
    now, later = (build(tmp_path, years * 365 * 86_400) for years in (0, YEARS))
    assert now.keys() == later.keys() and {"Modelfile", "onnx-int4/model.onnx", *MEASURED} <= now.keys()
    assert {name for name in now if now[name] != later[name]} <= MEASURED | {SUMS}
    assert now["report.json"][:200] != later["report.json"][:200]  # the clock did change
