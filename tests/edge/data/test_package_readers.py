"""Readers of packages: prose comes out, markup, labels and repetitions do not."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from minigpt_edge.data.package_readers import read_package
from minigpt_edge.data.pairs import distinct_pairs, format_pair, prompt, read_pairs
from minigpt_edge_runtime.errors import EdgeError

PROSE = "The rook moves any number of squares along a rank or a file of the board, and may not leap."


def test_medline(tmp_path: Path) -> None:
    article = "<Article><Abstract>{}</Abstract></Article>"
    marked = article.format(
        "<AbstractText>Mine.</AbstractText><CopyrightInformation>X</CopyrightInformation>"
    )
    plain = article.format("<AbstractText>One <i>two</i>.</AbstractText><AbstractText>Three.</AbstractText>")
    path = tmp_path / "a.xml.gz"
    path.write_bytes(gzip.compress(f"<Set>{marked}{plain}</Set>".encode()))
    assert read_package("medline", [path], {}) == ["One two. Three."]
    path.write_bytes(gzip.compress(b"<Set><Article>"))
    with pytest.raises(EdgeError, match="damaged file"):
        read_package("medline", [path], {})


def test_wikipedia(tmp_path: Path) -> None:
    def page(title: str, markup: str) -> str:
        return f"<page><title>{title}</title><id>1</id><text xml:space='preserve'>{markup}</text></page>"

    linked = PROSE.replace("board", "[[chessboard|board]]")
    chess = f"'''Rook''' {{{{stub}}}}\n\n{linked}\n\n[[Category:Chess pieces]]"
    pages = [
        page("Rook", chess),
        page("Olympics", PROSE + "[[Category:Olympic games]] [[Category:Board games]]"),
        page("Tree", PROSE + "[[Category:Plants]]"),
        page("Old", "#REDIRECT [[Rook]] [[Category:Chess]]"),
        page("Template:Rook", PROSE + "[[Category:Chess]]"),
    ]
    path = tmp_path / "wiki.gz"
    path.write_bytes(gzip.compress(" ".join(pages).encode()))
    options = {"include": r"\bchess\b|\bgames\b", "exclude": "olympic|board"}
    assert read_package("wikipedia", [path], options) == [PROSE]
    assert len(read_package("wikipedia", [path], {})) == 3
    assert read_package("wikipedia", [path], {"share": "0"}) == []


def test_definitions(tmp_path: Path) -> None:
    first = "Exports are goods that leave. They are valued at the border."
    again = "Exports are goods that leave. They are valued at the border. In dollars."
    content = {
        "names": {"a": "not text"},
        "flows": [{"description": f"<p>{first}</p>"}, {"description": again}],
    }
    path = tmp_path / "cache.json.xz"
    path.write_bytes(lzma.compress(json.dumps(content).encode()))
    assert read_package("definitions", [path], {"key": "description"}) == [first, again]
    assert read_package("definitions", [path], {"key": "description", "seen": "half"}) == [first]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EdgeError, match="damaged file"):
        read_package("definitions", [path], {"key": "description"})


def test_rulebook(tmp_path: Path) -> None:
    macro = (
        PROSE
        + " It deals [[/damage 2d6 fire]]{2d6 fire damage} &amp;Reference[prone] to @UUID[x.y]{the king}."
    )
    one, many = tmp_path / "rook.json", tmp_path / "many.json"
    one.write_text(json.dumps({"name": "Rook", "actions": [{"description": macro, "note": "skip"}]}))
    many.write_text(
        json.dumps({"data": [{"name": "Pawn", "description": [PROSE, "short", PROSE]}, {"name": "x"}]})
    )
    expected = f"Rook\n\n{PROSE} It deals 2d6 fire damage prone to the king."
    assert read_package("rulebook", [one, many], {}) == [expected, f"Pawn\n\n{PROSE}"]
    one.write_text("[1, 2]")
    with pytest.raises(EdgeError, match="not what the rulebook reader knows"):
        read_package("rulebook", [one], {})


def test_translations(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        place = tmp_path / folder / "translations"
        place.mkdir(parents=True)
        english = {
            "step": {"one": f"Turn on  the light {number}", "two": "Name", "three": "Say {name} to the door"},
            "four": "This sentence is only English here",
        }
        chinese = {"step": {"one": "開燈。", "two": "名稱", "three": "說 {name}"}}
        (place / "en.json").write_text(json.dumps(english))
        (place / "zh-Hant.json").write_text(json.dumps(chinese, ensure_ascii=False))
    files = sorted(tmp_path.glob("*/translations/*.json"))
    assert read_package("translations", files, {}) == [
        format_pair("Turn on the light 0", "開燈。"),
        format_pair("Turn on the light 1", "開燈。"),
    ]


def test_pairs_are_read_back_as_they_were_written() -> None:
    pairs = [("Open the door now", "現在開門"), ("Close it: really", "關上：真的")]
    documents = ["\n\n".join(format_pair(*pair) for pair in pairs)]
    assert read_pairs(documents) == pairs
    assert format_pair(*pairs[0]).startswith(prompt(pairs[0][0]) + " ")


def test_of_pairs_that_are_alike_one_is_kept_wherever_they_are() -> None:
    invite = ("Accept the quest invitation", "接受任務邀請")
    refuse = ("Reject the quest invitation", "拒絕任務邀請")
    numbered = [(f"Open the {n} doors now", "現在開門") for n in (3, 77)]
    documents = [
        "\n\n".join(format_pair(*pair) for pair in part)
        for part in ([invite, numbered[0]], [refuse], numbered)
    ]
    kept, counts = distinct_pairs(documents)
    assert kept == documents[:1]
    assert counts == {"read": 5, "near_duplicate": 3}
