"""Every script of benchmarks/ starts: `make bench` must not fail after an hour over a name that was moved."""

from __future__ import annotations

import subprocess
import sys

import pytest
from source import ROOT

SCRIPTS = sorted(
    path
    for path in (ROOT / "benchmarks").rglob("*.py")
    if "ArgumentParser" in path.read_text() and "__main__" in path.read_text()
)


def test_the_scan_finds_them() -> None:
    assert len(SCRIPTS) >= 15
    for name in ("experiments", "lib", "peers", "speed", "tables"):
        assert (ROOT / "benchmarks" / name).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_prints_its_help(script: object) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr
