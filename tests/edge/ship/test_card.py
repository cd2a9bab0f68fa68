"""The model card."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import yaml
from report_helpers import full_report, report_of

from minigpt_edge.ship.card import model_card, write_card


def front_matter(card: str) -> dict[str, object]:
    _, front, _ = card.split("---\n", 2)
    return yaml.safe_load(front)


def test_the_card_has_figures_licences_and_limits(tmp_path: Path) -> None:
    write_card(report_of(full_report()), tmp_path, prompt="This licence")
    card = (tmp_path / "README.md").read_text()
    front = front_matter(card)
    assert front["license"] == "apache-2.0"
    assert front["tags"] == ["minigpt-edge", "gguf", "pruned", "law"]
    assert "base_model" not in front  # not a hub id: the hub would refuse it
    assert "| shipped Q4_0 | 47.8 MB | 18 % |" in card
    for words in ("Apache-2.0", "CC-BY-4.0", "no legal advice", "shipped-Q4_0.gguf", "quantized to Q4_0"):
        assert words in card
    assert "{" not in card.split("---\n", 2)[2]


def test_a_hub_id_goes_into_the_front_matter() -> None:
    report = full_report()
    report["base_model"] |= {"name": "someone/model", "licence": "Own-Licence"}
    front = front_matter(model_card(report_of(report)))
    assert front["base_model"] == "someone/model"
    assert (front["license"], front["license_name"]) == ("other", "Own-Licence")


def test_the_card_claims_only_what_was_done() -> None:
    report = full_report()
    del report["recovery"]
    assert "fine-tuned on that text" not in model_card(report_of(report))
    assert "fine-tuned on that text" in model_card(report_of(full_report()))


def test_a_prompt_with_quotes_stays_one_argument() -> None:
    prompt = "Rock 'n' \"roll\" $HOME `date`"
    card = model_card(report_of(full_report()), prompt)
    lines = [line for line in card.splitlines() if "$HOME" in line]
    shell = [line for line in lines if not line.startswith("print(")]
    assert len(shell) == 3 and all(shlex.split(line)[-1] == prompt for line in shell)
    (python,) = (line for line in lines if line not in shell)
    call = ast.parse(python).body[0].value.args[0].value.value.value  # print(model(prompt, …)[…][…][…])
    assert call.args[0].value == prompt
