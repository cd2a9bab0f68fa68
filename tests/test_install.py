"""Which build of torch `make setup` installs."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
from source import ROOT


@pytest.fixture(scope="module")
def install() -> Any:
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("asked", "system", "gpu", "build"),
    [
        ("", "linux", False, "cpu"),
        ("", "linux", True, "cuda"),
        ("cpu", "linux", True, "cpu"),
        ("cu126", "linux", False, "cu126"),
        ("", "darwin", False, None),
        ("", "win32", True, None),
    ],
)
def test_torch_is_built_for_what_is_there_or_asked_for(
    install: Any, monkeypatch: pytest.MonkeyPatch, asked: str, system: str, gpu: bool, build: str | None
) -> None:
    monkeypatch.setenv("TORCH", asked)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(install.shutil, "which", lambda name: f"/usr/bin/{name}" if gpu else None)
    assert install.torch_build() == build


def test_what_can_be_no_build_is_refused(
    install: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH", "cu126; rm -r x")
    with pytest.raises(SystemExit):
        install.torch_build()
    assert "is no build of torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "there", "pins"),
    [
        ("", "2.0+cpu", []),
        ("", "2.0", []),
        ("cuda", "2.0", []),
        ("cuda", "2.0+cpu", ["torch==2.0"]),
        ("cpu", "2.0", ["torch==2.0+cpu"]),
    ],
)
def test_torch_is_replaced_only_where_another_build_is_asked_for(
    install: Any, monkeypatch: pytest.MonkeyPatch, asked: str, there: str, pins: list[str]
) -> None:
    installed: list[str] = []
    monkeypatch.setenv("TORCH", asked)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install, "pinned", lambda name: "2.0")
    monkeypatch.setattr(install.importlib.metadata, "version", lambda name: there)
    monkeypatch.setattr(install, "checked", lambda wanted, *_: bool(installed.extend(wanted)) or True)
    monkeypatch.setattr(install, "pip", lambda *given: bool(installed.append(given[-1])) or True)
    assert install.torch()
    assert installed[: len(pins)] == pins and bool(installed) == bool(pins)
