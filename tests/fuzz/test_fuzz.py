"""A few hundred damaged files of every kind; `make fuzz` reads ten thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

FUZZ = Path(__file__).with_name("fuzz.py")


def fuzz(out: Path, *options: str) -> dict:
    subprocess.run(
        [sys.executable, str(FUZZ), "--out", str(out), *options], capture_output=True, text=True, timeout=900
    )
    return json.loads(out.read_text())


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    result = fuzz(tmp_path / "result.json", "--cases", "300")
    assert result["bad"] == []
    assert result["cases"] >= 290 and len(result["subjects"]) >= 14
    for name, outcomes in result["subjects"].items():
        assert outcomes.get("refused", 0) > 0, f"no case of {name} was refused: were the files damaged?"


def test_what_should_not_happen_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, a write elsewhere, the end of the interpreter and a hang are each told as bad."""
    sys.path[:0] = [str(FUZZ.parent)]
    code = (
        "import sys; sys.argv = ['fuzz.py', *sys.argv[1:]]; import fuzz, subjects, os, time, pathlib\n"
        "def read(path):\n"
        "    data = path.read_bytes()\n"
        "    if data == b'sound': return\n"
        "    kind = sum(data) % 4\n"
        "    if kind == 0: raise KeyError('x')\n"
        f"    if kind == 1: pathlib.Path({str(tmp_path / 'outside')!r}).write_text('')\n"
        "    if kind == 2: os.abort()\n"
        "    if kind == 3: time.sleep(100)\n"
        "make = lambda folder: (folder / 'a').write_bytes(b'sound')\n"
        "subjects.SUBJECTS.clear(); subjects.SUBJECTS['bad'] = subjects.Subject(make, ('a',), read)\n"
        "fuzz.SECONDS = 1.0; fuzz.__file__ = __file__\n"
        "fuzz.main()\n"
    )
    script = tmp_path / "bad.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(FUZZ.parent)!r})\n{code}")
    out = tmp_path / "bad.json"
    done = subprocess.run(
        [sys.executable, str(script), "--cases", "16", "--out", str(out)], capture_output=True, timeout=120
    )
    assert done.returncode == 1
    said = " ".join(one["what"] for one in json.loads(out.read_text())["bad"])
    for sign in ("KeyError", "it touched", "the interpreter died", "no answer"):
        assert sign in said
