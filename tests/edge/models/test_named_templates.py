"""A base model's named chat templates: kept from wherever they were stored, into whatever is made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from source_helpers import tiny_model_dir

from minigpt_edge.models.base_model import resolve_model
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf

NAMED = {"default": "{{ eos_token }}", "tool_use": "{{ tools | length }}", "rag": "{{ documents | length }}"}


def stored(folder: Path, form: str) -> Path:
    """The model with its templates in one of the forms that have been in use, without the single one."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    if form == "settings":
        settings["chat_template"] = [{"name": name, "template": text} for name, text in NAMED.items()]
    else:
        (folder / "additional_chat_templates").mkdir()
        for name, text in NAMED.items():
            path = folder / "additional_chat_templates" / f"{name}.jinja"
            (folder / "chat_template.jinja" if name == "default" else path).write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("form", ["settings", "files"])
def test_named_templates_are_kept(form: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = stored(tiny_model_dir(tmp_path / "model"), form)
    assert AutoTokenizer.from_pretrained(folder).chat_template == NAMED
    model = resolve_model(str(folder))
    assert AutoTokenizer.from_pretrained(model.path).chat_template == NAMED
    if form == "files":
        (folder / "additional_chat_templates" / "rag.jinja").write_text("another")
        assert resolve_model(str(folder)).fingerprint != model.fingerprint
    write_gguf(read_checkpoint(model.path), tmp_path / "model.gguf")
    back = resolve_model(str(tmp_path / "model.gguf"))
    assert AutoTokenizer.from_pretrained(back.path).chat_template == NAMED


def test_a_base_without_a_default_template_is_told(tmp_path: Path) -> None:
    folder = stored(tiny_model_dir(tmp_path / "model"), "settings")
    assert "template" not in str(resolve_model(str(folder)).notes)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"][1:]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = resolve_model(str(folder))
    for read in (model, resolve_model(str(model.path))):
        assert [note for note in read.notes if "no default chat template, only named ones (rag" in note]


def test_a_directory_of_ours_that_transformers_saved_again_is_converted_again(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = resolve_model(str(stored(tiny_model_dir(tmp_path / "model"), "settings")))
    AutoTokenizer.from_pretrained(model.path).save_pretrained(model.path)
    assert (model.path / "additional_chat_templates" / "rag.jinja").is_file()
    assert AutoTokenizer.from_pretrained(resolve_model(str(model.path)).path).chat_template == NAMED
