from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tiny_llama import SMOLLM, START, TEMPLATE, edit_config, write_tokenizer

from minigpt_edge_export.gguf.pretokenizers import PRE_TOKENIZERS, by_name, name_of, to_hugging_face
from minigpt_edge_export.gguf.tokenizer import CONTROL, NORMAL, USER_DEFINED, read_tokenizer
from minigpt_edge_runtime.errors import EdgeError

BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": START, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {START: {"id": START, "ids": [1], "tokens": [START]}},
}


@pytest.fixture
def data(tokenizer_json: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(tokenizer_json)


def test_fields(copied: Path) -> None:
    fields = read_tokenizer(copied, 400)
    assert fields.pre == "smollm"
    assert fields.tokens[:3] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    assert fields.types[:4] == (CONTROL, CONTROL, CONTROL, NORMAL)
    assert (fields.tokens[398], fields.types[398]) == ("<article>", USER_DEFINED)
    assert fields.special_ids == {"bos": 1, "eos": 2, "unk": 0}
    assert not fields.adds_bos
    assert not fields.adds_eos
    assert fields.chat_templates == {"default": TEMPLATE}
    assert all(len(merge.split(" ")) == 2 for merge in fields.merges)


def test_bos_is_added_only_if_the_tokenizer_adds_it(copied: Path, data: dict[str, Any]) -> None:
    write_tokenizer(copied, {**data, "post_processor": BOS})
    fields = read_tokenizer(copied, 400)
    assert fields.adds_bos
    assert not fields.adds_eos


def test_refuses_to_add_another_token_than_bos(copied: Path, data: dict[str, Any]) -> None:
    write_tokenizer(copied, {**data, "post_processor": BOS}, bos_token="<|im_end|>")
    with pytest.raises(EdgeError, match="the bos token is '<|im_end|>'"):
        read_tokenizer(copied, 400)


def test_ids_come_from_the_configs_where_no_text_names_them(copied: Path) -> None:
    (copied / "tokenizer_config.json").write_text("{}")
    edit_config(copied, bos_token_id=0, eos_token_id=[2, 1])
    assert read_tokenizer(copied, 400).special_ids == {"bos": 0, "eos": 2}
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    assert read_tokenizer(copied, 400).special_ids == {"bos": 0, "eos": 1}
    edit_config(copied, bos_token_id=400)
    with pytest.raises(EdgeError, match="bos_token_id 400 is outside"):
        read_tokenizer(copied, 400)
    for wrong in ("1", {}, [[1]], float("inf"), True):
        edit_config(copied, bos_token_id=wrong)
        with pytest.raises(EdgeError, match="bos_token_id .* is not the id of a token"):
            read_tokenizer(copied, 400)


def test_chat_template_in_the_tokenizer_config(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    templates = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    (copied / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert read_tokenizer(copied, 400).chat_templates == {"tools": "a", "default": "b"}


def test_recorded_pre_tokenizer_must_fit(copied: Path, data: dict[str, Any]) -> None:
    edit_config(copied, minigpt_edge={"tokenizer_pre": "starcoder"})
    assert read_tokenizer(copied, 400).pre == "starcoder"
    edit_config(copied, minigpt_edge={"tokenizer_pre": "gpt-2"})
    with pytest.raises(EdgeError, match="does not split text as 'gpt-2' does"):
        read_tokenizer(copied, 400)
    write_tokenizer(copied, {**data, "pre_tokenizer": SMOLLM["pretokenizers"][1]})
    assert read_tokenizer(copied, 400).pre == "gpt-2"


@pytest.mark.parametrize("name", list(PRE_TOKENIZERS))
def test_every_known_form_is_recognised(data: dict[str, Any], name: str) -> None:
    form = by_name(name)
    data["pre_tokenizer"], data["model"]["ignore_merges"] = to_hugging_face(form), form.ignore_merges
    assert by_name(name_of(data)) == form


def test_refuses_unknown_splits_and_other_tokenizers(copied: Path, data: dict[str, Any]) -> None:
    spaces_first = {**SMOLLM, "pretokenizers": [{"type": "WhitespaceSplit"}, *SMOLLM["pretokenizers"]]}
    cases = [
        ({"pre_tokenizer": spaces_first}, "no known llama.cpp name"),
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "not a plain byte-level BPE"),
        ({"model": {**data["model"], "continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
    ]  # fmt: skip
    for change, message in cases:
        write_tokenizer(copied, {**data, **change})
        with pytest.raises(EdgeError, match=message):
            read_tokenizer(copied, 400)


def test_refuses_merges_that_would_lose_bytes(copied: Path, data: dict[str, Any]) -> None:
    data["model"]["merges"].append(["q", "z"])
    write_tokenizer(copied, data)
    with pytest.raises(EdgeError, match="does not fit the vocabulary|can't be read"):
        read_tokenizer(copied, 400)


def test_refuses_a_special_token_that_is_not_there(copied: Path, data: dict[str, Any]) -> None:
    write_tokenizer(copied, data, eos_token="</s>")
    with pytest.raises(EdgeError, match="no token '</s>'"):
        read_tokenizer(copied, 400)


def test_refuses_two_tokens_with_one_id(copied: Path, data: dict[str, Any]) -> None:
    del data["model"]["vocab"][chr(256 + 4)]  # tokenizers now gives <article> the id of the last token
    write_tokenizer(copied, data)
    with pytest.raises(EdgeError, match="two tokens one id"):
        read_tokenizer(copied, 400)
