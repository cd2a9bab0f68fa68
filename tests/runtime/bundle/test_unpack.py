"""Zipped bundles: whole and good ones work like directories, others are refused with nothing written."""

from __future__ import annotations

import random
import shutil
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from minigpt_edge_runtime.bundle.open import read_bundle
from minigpt_edge_runtime.bundle.unpack import cache_dir, unpack
from minigpt_edge_runtime.cli import cli
from minigpt_edge_runtime.errors import EdgeError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where unpacked bundles go in these tests."""
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def zipped(bundle: Path, path: Path, top: str = "", how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for file in sorted(bundle.rglob("*")):
            archive.write(file, f"{top}{file.relative_to(bundle).as_posix()}")
    return path


def call(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def assert_refused(path: Path, message: str, cache: Path) -> None:
    """One message and hint through the command line, and nothing written."""

    def outside() -> set[Path]:
        return {file for file in path.parent.rglob("*") if cache not in (file, *file.parents)}

    before = outside()
    result = call("run", path, "x")
    assert result.exit_code == 1 and result.stdout == "" and "Traceback" not in result.output
    assert message in result.stderr and result.stderr.count("error: ") == 1 and "\nhint: " in result.stderr
    assert [file for file in cache.rglob("*") if file.is_file() or "partial" in file.name] == []
    assert outside() == before


@pytest.mark.parametrize("top", ["", "my bundle/", "./"])
def test_a_zip_is_as_good_as_its_directory(whole_bundle: Path, tmp_path: Path, top: str) -> None:
    path = zipped(whole_bundle, tmp_path / "law.zip", top)
    found = read_bundle(path)
    assert found.manifest == read_bundle(whole_bundle).manifest
    names = [file.relative_to(whole_bundle) for file in whole_bundle.rglob("*") if file.is_file()]
    assert names and all((found.directory / n).read_bytes() == (whole_bundle / n).read_bytes() for n in names)
    options = ("The software", "--greedy", "--max-tokens", 3, "--threads", 1)
    assert call("run", path, *options).stdout == call("run", whole_bundle, *options).stdout != ""
    assert read_bundle(path, "tiny-f16.gguf").model_path.name == "tiny-f16.gguf"
    assert call("inspect", path).exit_code == 0
    assert "sha256" not in call("verify", path, "--threads", 1).stdout


def test_it_is_unpacked_once(bundle: Path, tmp_path: Path, cache: Path) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    first = unpack(path)
    (first / "mark").touch()
    assert unpack(path) == unpack(Path(shutil.copyfile(path, tmp_path / "b.zip"))) == first
    assert (first / "mark").exists() and first.is_relative_to(cache)
    (bundle / "report.json").write_text("{}")
    assert unpack(zipped(bundle, path)) != first
    assert sorted(folder.name for folder in (cache / "unpacked").iterdir()) == sorted(
        [first.name, unpack(path).name]
    )


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil", "\\evil", "C:evil", "C:\\evil", "..", "a/.."],
)
def test_names_that_leave_the_folder_are_refused(
    bundle: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    assert_refused(path, "which would be written outside its folder", cache)


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model.gguf", "other")


def twice_in_another_case(archive: zipfile.ZipFile) -> None:
    archive.writestr("MODEL.gguf", "other")


def file_and_folder(archive: zipfile.ZipFile) -> None:
    archive.writestr("model.gguf/x", "below a file")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (link, "'link', which would be written outside"),
        (twice, "holds a name twice"),
        (twice_in_another_case, "holds a name twice"),
        (file_and_folder, "law.zip"),
    ],
)
def test_entries_that_are_no_plain_files_are_refused(
    bundle: Path, tmp_path: Path, cache: Path, add: Callable[[zipfile.ZipFile], None], message: str
) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    with zipfile.ZipFile(path, "a") as archive:
        add(archive)
    assert_refused(path, message, cache)


def patch_headers(path: Path, at: int, value: bytes) -> None:
    """Write into every header of a file, at an offset that counts from a central one's beginning."""
    data = bytearray(path.read_bytes())
    for magic, shift in ((b"PK\x01\x02", 0), (b"PK\x03\x04", -2)):
        start = data.find(magic)
        while start >= 0:
            data[start + at + shift : start + at + shift + len(value)] = value
            start = data.find(magic, start + 4)
    path.write_bytes(data)


def test_an_encrypted_zip_is_refused(bundle: Path, tmp_path: Path, cache: Path) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    patch_headers(path, 8, b"\x01")
    assert_refused(path, "is encrypted", cache)


def test_a_version_of_zip_that_is_not_read_is_said(bundle: Path, tmp_path: Path, cache: Path) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    patch_headers(path, 6, b"\x63")
    assert_refused(path, "a kind of zip file that is not read here (zip file version 9.9)", cache)


def test_an_unknown_compression_is_refused(bundle: Path, tmp_path: Path, cache: Path) -> None:
    for how in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        assert_refused(
            zipped(bundle, tmp_path / "law.zip", how=how), "compressed in a way that is not known", cache
        )


def test_what_is_no_whole_zip_is_refused(bundle: Path, tmp_path: Path, cache: Path) -> None:
    path = zipped(bundle, tmp_path / "law.zip")
    whole = path.read_bytes()
    for content in (b"", b"no zip", whole[:-1], whole[: len(whole) // 2], whole[100:], b"PK\x05\x06"):
        path.write_bytes(content)
        assert_refused(path, "law.zip is not a whole zip file", cache)


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_damaged_bytes_are_refused_or_do_no_harm(bundle: Path, tmp_path: Path, cache: Path, how: int) -> None:
    path, chance = zipped(bundle, tmp_path / "law.zip", how=how), random.Random(4)
    whole, files = path.read_bytes(), {file.name: file.read_bytes() for file in bundle.iterdir()}
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        at = chance.choice((chance.randrange(len(data)), len(data) - chance.randrange(1, 600)))
        data[at] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            found = unpack(path)
        except EdgeError as error:
            assert error.hint
            refused += 1
        else:
            assert sorted(found.read_bytes() for found in found.rglob("*") if found.is_file()) == sorted(
                files.values()
            )
    assert refused > 20 and not list(cache.rglob("*partial*"))


def test_a_zip_of_something_else_is_refused(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert_refused(path, "is not a zipped bundle (it has no manifest.json)", cache)
    with zipfile.ZipFile(path, "w"):
        pass
    assert_refused(path, "is not a zipped bundle", cache)


def test_a_bomb_is_measured_before_it_goes_off(
    bundle: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / "zeros").write_bytes(bytes(50_000_000))
    path = zipped(bundle, tmp_path / "law.zip")
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 40_000_000))
    assert_refused(path, "but only 40 MB are free", cache)


def test_a_full_disk_leaves_nothing(
    bundle: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(bundle, tmp_path / "law.zip")

    def full(source: object, target: object, *rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)  # by which zipfile writes
    assert_refused(path, "no space left on the disk", cache)


def test_a_cache_that_cannot_be_made_is_said(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "file" / "cache"))
    result = call("run", zipped(bundle, tmp_path / "law.zip"), "x")
    assert result.exit_code == 1 and "hint: " in result.stderr and "Traceback" not in result.output


def test_the_cache_is_where_the_platform_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MINIGPT_EDGE_CACHE")
    for platform, variable, value, expected in (
        ("linux", "XDG_CACHE_HOME", str(tmp_path / "xdg"), "xdg/minigpt-edge"),
        ("linux", "XDG_CACHE_HOME", "relative", ".cache/minigpt-edge"),  # to be ignored, by the specification
        ("darwin", "XDG_CACHE_HOME", str(tmp_path / "xdg"), "Library/Caches/minigpt-edge"),
        ("win32", "LOCALAPPDATA", str(tmp_path / "local"), "local/minigpt-edge/Cache"),
        ("win32", "LOCALAPPDATA", "", "AppData/Local/minigpt-edge/Cache"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, value)
        assert cache_dir() == tmp_path / expected
