"""The pages under docs/ say what the code does, and what they point to exists."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from source import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "findings" / "README.md"])


def test_the_command_reference_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "cli_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: object) -> None:
    from pathlib import Path

    assert isinstance(page, Path)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_folders_that_the_concepts_page_names_exist() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    named = set(re.findall(r"`((?:minigpt_edge|export|runtime)/[\w./]*)`", text))
    assert len(named) >= 8
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_api_page_runs_what_there_is() -> None:
    """Names of the API and keyword options that the page's examples use exist."""
    import minigpt_edge
    from minigpt_edge_runtime.generate.model import Model

    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        compile(block, "docs/python.md", "exec")
        for name in re.findall(r"minigpt_edge\.(\w+)\(", block):
            assert hasattr(minigpt_edge, name)
        for name in re.findall(r"\bmodel\.(\w+)\(", block):
            assert hasattr(Model, name)
