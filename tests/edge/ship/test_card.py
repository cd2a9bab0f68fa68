"""The model card and ollama's Modelfile."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
import yaml
from report_helpers import full_report, report_of

from minigpt_edge.ship.card import model_card, write_card
from minigpt_edge.ship.modelfile import chatml_system, modelfile

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN_CHATML = (
    "{%- for m in messages %}\n{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}\n"
    "{%- endfor %}"
    "{{- '<|im_start|>assistant\n' }}"
)
LLAMA2 = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"


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


def test_chatml_is_known_by_what_it_renders() -> None:
    assert chatml_system(CHATML) == "Be kind"
    assert chatml_system(PLAIN_CHATML) == ""
    assert chatml_system(LLAMA2) is None
    assert chatml_system("{{ raise_exception('no') }}") is None
    assert chatml_system("{% broken") is None


def test_a_prompt_with_quotes_stays_one_argument() -> None:
    prompt = "Rock 'n' \"roll\" $HOME `date`"
    card = model_card(report_of(full_report()), prompt)
    lines = [line for line in card.splitlines() if "$HOME" in line]
    shell = [line for line in lines if not line.startswith("print(")]
    assert len(shell) == 3 and all(shlex.split(line)[-1] == prompt for line in shell)
    (python,) = (line for line in lines if line not in shell)
    call = ast.parse(python).body[0].value.args[0].value.value.value  # print(model(prompt, …)[…][…][…])
    assert call.args[0].value == prompt


def test_a_template_that_fails_or_takes_long_is_none_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge_runtime.generate import template_bounds

    monkeypatch.setattr(template_bounds, "SECONDS", 0.2)
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"
    for template in (loops, "{{ 1 // 0 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"):
        assert chatml_system(template) is None
    dated = "{% set today = strftime_now('%Y') %}{{ '' if today else raise_exception('no date') }}"
    assert chatml_system(dated + CHATML) == "Be kind"


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    assert chatml_system(reach) is None


@pytest.mark.parametrize(
    ("template", "has", "lacks"),
    [
        (CHATML, ['SYSTEM """Be kind"""', "{{ .Role }}", 'PARAMETER stop "<|im_end|>"'], ["{{ .Prompt }}"]),
        (PLAIN_CHATML, ["{{ .Role }}"], ["SYSTEM"]),
        (LLAMA2, [], ["TEMPLATE", "<|im_end|>"]),
        (None, ['TEMPLATE """{{ .Prompt }}"""'], ["SYSTEM", "<|im_end|>"]),
    ],
)
def test_modelfile(template: str | None, has: list[str], lacks: list[str]) -> None:
    text = modelfile("model.gguf", template, stop=["<|endoftext|>"])
    assert text.startswith("FROM ./model.gguf\n")
    for part in [*has, 'PARAMETER stop "<|endoftext|>"']:
        assert part in text
    for part in lacks:
        assert part not in text


def test_modelfile_names_each_stop_once() -> None:
    text = modelfile("m.gguf", CHATML, stop=["<|im_end|>", "", "<|im_end|>"])
    assert text.count("PARAMETER stop") == 1
