"""Domains are data files: each loads, names its licences, needs no hub by default; users add their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from minigpt_edge.cli import cli
from minigpt_edge.data import tasks
from minigpt_edge.data.domains import list_domains, load_domain, parse_domain
from minigpt_edge.data.package_readers import READERS
from minigpt_edge.data.sources import HubSource, PackageSource
from minigpt_edge_runtime.errors import EdgeError, UsageError

OWN = """
title = "Poems"
default = "mine"
language = "de"
questions = ["mmlu:philosophy"]
[sources.mine]
kind = "files"
path = "poems"
licence = "mine"
"""


HUB_PAIRS = 'kind = "hub"\ndataset = "a/b"\npair_columns = ["en"]'
WIKIPEDIA = f'''kind = "package"
package = "a==1"
sha256 = "{"0" * 64}"
members = "a"
reader = "wikipedia"
options = {{{{ {{}} }}}}'''


@pytest.mark.parametrize("name", list_domains())
def test_every_domain_loads_and_works_without_a_hub(name: str) -> None:
    domain = load_domain(name)
    assert domain.words and domain.words > 140_000
    for source in domain.chosen():
        assert isinstance(source, PackageSource)
        assert len(source.sha256) == 64 and source.reader in READERS and "==" in source.package
    assert all(each.licence for each in domain.sources.values())
    assert all(tasks.get_task(question) for question in domain.questions)


def test_the_papers_domains_are_there() -> None:
    assert {"law", "medical", "economics", "games", "translation"} < set(list_domains())
    assert load_domain("translation").task == "translation"


def test_hub_sources_are_for_those_who_ask() -> None:
    (law,) = load_domain("law").chosen("hub")
    assert isinstance(law, HubSource)
    (pairs,) = load_domain("translation").chosen("hub")
    assert isinstance(pairs, HubSource) and pairs.pair_columns == ("en", "ch")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no domain 'lore'") as caught:
        load_domain("lore")
    assert "law" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no source 'web'") as caught:
        load_domain("law").chosen("web")
    assert "package, hub" in (caught.value.hint or "")


def test_domains_are_listed_with_their_licences() -> None:
    done = CliRunner().invoke(cli, ["domains"])
    assert done.exit_code == 0
    assert "law  Law:" in done.output and "licensedcode-data==" in done.output and "CC-BY-4.0" in done.output
    rows = json.loads(CliRunner().invoke(cli, ["domains", "--json"]).output)
    hub = next(row for row in rows if row["name"] == "law" and row["source"] == "hub")
    assert hub["default"] is False and hub["here"] == "on the hub" and hub["words"] > 1e6


def test_a_domain_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "poems.toml").write_text(OWN)
    done = CliRunner().invoke(cli, ["domains", "add", str(tmp_path / "poems.toml")])
    assert done.exit_code == 0 and "poems: Poems" in done.output
    assert "poems" in list_domains()
    domain = load_domain("poems")
    assert (domain.language, domain.questions, domain.chosen()[0].licence) == (
        "de",
        ("mmlu:philosophy",),
        "mine",
    )
    again = CliRunner().invoke(cli, ["domains", "add", str(tmp_path / "absent.toml")])
    assert again.exit_code and "can't be read" in again.output and "Traceback" not in again.output


def test_a_domain_is_fetched_before_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(tmp_path / "cache"))
    own = OWN.replace('path = "poems"', f'path = "{tmp_path / "poems"}"').replace('["mmlu:philosophy"]', "[]")
    (tmp_path / "poems.toml").write_text(own)
    assert CliRunner().invoke(cli, ["domains", "add", str(tmp_path / "poems.toml")]).exit_code == 0
    assert f"{tmp_path / 'poems'}, missing" in CliRunner().invoke(cli, ["domains"]).output
    assert "does not exist" in CliRunner().invoke(cli, ["domains", "fetch", "poems"]).output
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "one.txt").write_text("Es war, als hätt der Himmel")
    assert "1 documents" in CliRunner().invoke(cli, ["domains", "fetch", "poems"]).output


def test_packages_bring_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "edge_poems"
    info = tmp_path / "edge_poems-1.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    (package / "verse.toml").write_text(OWN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-poems\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[minigpt_edge.domains]\nverse = edge_poems\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "verse" in list_domains() and load_domain("verse").title == "Poems"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title =", "titel ="), "title is missing"),
        (('default = "mine"', 'default = "yours"'), "default names a source that is not there"),
        (
            ('kind = "files"', 'kind = "web"'),
            "sources.mine.kind is 'web', it should be one of 'files', 'package', 'hub'",
        ),
        (('path = "poems"', ""), "sources.mine.path is missing"),
        (("licence =", "license ="), "there is no key sources.mine.license"),
        (('"mmlu:philosophy"', "7"), "questions.0 is 7, it should be a valid string"),
        (('language = "de"', 'task = "song"'), "task is 'song', it should be 'text' or 'translation'"),
        (('language = "de"', 'words = "many"'), "words is 'many', it should be a valid integer"),
        (
            ("language =", 'task = "translation"\nlanguage ='),
            "from English to Traditional Chinese, not to de",
        ),
        (('"mmlu:philosophy"', '"mmlu:magic"'), "MMLU has no subject 'magic'"),
        (('language = "de"', 'langauge = "de"'), "there is no key langauge"),
        (
            ('kind = "files"\npath = "poems"', HUB_PAIRS),
            r"pair_columns is \['en'\], it should be two columns",
        ),
        (('kind = "files"\npath = "poems"', WIKIPEDIA.format("include = '('")), "option include is wrong"),
        (('kind = "files"\npath = "poems"', WIKIPEDIA.format("shar = 1")), "has no option 'shar'"),
        (("[sources", "[sources["), "is not TOML"),
        (('kind = "files"\npath = "poems"', 'kind = "package"'), "sources.mine.package is missing"),
    ],
)
def test_a_damaged_domain_file_says_what_is_wrong(change: tuple[str, str], message: str) -> None:
    assert change[0] in OWN
    with pytest.raises(EdgeError, match=message) as caught:
        parse_domain("poems", OWN.replace(*change), "poems.toml")
    assert "poems.toml" in caught.value.message
