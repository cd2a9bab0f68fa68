"""benchmarks/tables.py: the README's figures and its picture come from the results, or it is noticed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from report_helpers import full_report

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tables.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path, script: ModuleType) -> Path:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "build.json").write_text(json.dumps(full_report()))
    (tmp_path / "README.md").write_text(f"# Title\n\n{script.BEGIN}old\n{script.END}\nAfter\n")
    return tmp_path


def test_figures_are_written_between_the_marks(script: ModuleType, root: Path) -> None:
    assert script.main([], root) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n") and text.endswith("\nAfter\n") and "old" not in text
    assert "| shipped Q4_0 | 47.8 MB | 18 % |" in text
    assert (root / "docs" / "result.svg").read_text().startswith("<svg")
    assert script.main(["--check"], root) == 0


def test_check_notices_and_writes_nothing(script: ModuleType, root: Path) -> None:
    before = (root / "README.md").read_text()
    assert script.main(["--check"], root) == 1
    assert (root / "README.md").read_text() == before
    assert not (root / "docs").exists()


def test_missing_results_are_said(script: ModuleType, root: Path) -> None:
    (root / "benchmarks" / "results" / "build.json").unlink()
    with pytest.raises(SystemExit, match="build.json does not exist"):
        script.main([], root)
