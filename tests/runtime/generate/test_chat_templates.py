"""Chat templates as people ship them: both engines render or refuse what transformers renders or refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tiny_onnx import make_checkpoint
from tokenizers import Tokenizer

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.generate.chat import ChatTemplateError, chat_ids

FILES = sorted((Path(__file__).parents[2] / "tiny" / "templates").glob("*.jinja"))
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
    "unk_token": "<|endoftext|>",
    "pad_token": None,
    "image_token": '<"\\ 图>\n',
    "extra_special_tokens": {"boi_token": "<image>"},
}
PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Straße <b> & 'so'", "enum": ["Köln", "東京"]},
        "days": {"type": "array", "items": {"type": "integer"}, "default": 1700000000},
        "how": {"type": ["string", "null"]},
        "more": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    "required": ["city"],
}
FUNCTION = {"name": "weather", "description": "The weather.\nOf a city", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
DOCUMENTS = [{"title": "One <1>", "text": "First text\n"}, {"title": "Two", "text": "Zweiter"}]
USER, SYSTEM = (
    {"role": "user", "content": " <Hi> 漢\n"},
    {"role": "system", "content": "Sei kürzer. /no_think"},
)
ANSWER = {"role": "assistant", "content": "Hello! ", "name": None, "tool_calls": None}
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CALLED = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12 °C", "tool_call_id": "call12345", "name": "weather"},
]
PARTS = [{"type": "text", "text": "What "}, {"type": "image"}, {"type": "text", "text": " is it?"}]
THOUGHT = {"role": "assistant", "content": "Yes", "reasoning": "so\n"}
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "question": ([USER], {}),
    "turns": ([SYSTEM, USER, ANSWER, USER], {}),
    "tools": ([SYSTEM, USER], {"tools": TOOLS}),
    "calls": ([USER, *CALLED, ANSWER, USER], {"tools": TOOLS * 2}),
    "documents": ([USER], {"documents": DOCUMENTS}),
    "tools and documents": (
        [USER],
        {"tools": TOOLS, "documents": DOCUMENTS, "controls": {"length": "short"}},
    ),
    "parts": ([{"role": "user", "content": PARTS}], {}),
    "no thinking": ([USER, {**ANSWER, "content": "<think>\nx\n</think>\n\nBye"}], {"enable_thinking": False}),
    "thoughts": ([USER, THOUGHT], {"reasoning_effort": "low"}),
    "wrong order": ([USER, USER, SYSTEM], {}),
    "prefill": ([SYSTEM, USER, {"role": "assistant", "content": "It is "}], {"continue_final_message": True}),
    "open parts": ([USER, {"role": "assistant", "content": PARTS}], {"continue_final_message": True}),
    "none": ([], {}),
}


def models() -> dict[str, dict[str, str]]:
    """Model -> name -> template."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for path in FILES:
        model, _, name = path.stem.rpartition(".")
        named = name in ("default", "tool_use", "rag")
        found[model if named else path.stem][name if named else "default"] = path.read_bytes().decode()
    return dict(found)


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, model: Path, onnx_model: Path, tokenizer: Tokenizer
) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    make_checkpoint(model, folder / "checkpoint", tokenizer)
    (folder / "checkpoint" / "chat_template.jinja").unlink()
    shutil.copytree(onnx_model.parent, folder / "onnx")
    (folder / "onnx" / "chat_template.jinja").unlink()
    return folder


def with_templates(plain: Path, folder: Path, templates: dict[str, str], as_files: bool) -> list[Path]:
    """The checkpoint with templates as tokenizers have stored them, and its GGUF and ONNX files."""
    for part in ("checkpoint", "onnx"):
        shutil.copytree(plain / part, folder / part, copy_function=os.link)
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL}
        if as_files:
            (folder / part / "additional_chat_templates").mkdir()
            for name, text in templates.items():
                path = folder / part / "additional_chat_templates" / f"{name}.jinja"
                path = folder / part / "chat_template.jinja" if name == "default" else path
                path.write_bytes(text.encode())
        else:
            listed = [{"name": name, "template": text} for name, text in templates.items()]
            settings["chat_template"] = listed[0]["template"] if [*templates] == ["default"] else listed
        path = folder / part / "tokenizer_config.json"
        path.unlink()  # it is a link
        path.write_text(json.dumps(settings))
    write_gguf(read_checkpoint(folder / "checkpoint"), folder / "model.gguf")
    return [folder / "model.gguf", folder / "onnx" / "model.onnx"]


def expected(tokenizer: Any, messages: list[dict[str, Any]], given: dict[str, Any]) -> str | None:
    """What transformers makes of it, None if it refuses."""
    new = not given.get("continue_final_message")
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=new, tokenize=False, **given)
    except Exception:  # templates raise what they like
        return None


def rendered(engine: Engine, messages: list[dict[str, Any]], given: dict[str, Any]) -> str | None:
    try:
        return engine.detokenize(chat_ids(engine, messages, **given), special=True).decode()
    except ChatTemplateError:
        return None


@pytest.mark.parametrize(
    ("name", "as_files"),
    [(name, False) for name in models()] + [(name, True) for name in ("command-r", "hermes", "line-breaks")],
)
def test_templates_of_models_render_as_in_transformers(
    name: str, as_files: bool, plain: Path, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    paths = with_templates(plain, tmp_path, models()[name], as_files)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "checkpoint"))
    texts = {chat: expected(tokenizer, *asked) for chat, asked in CHATS.items()}
    assert texts["none"] is None and texts["question"] and len(set(texts.values())) > 4
    for path in paths:
        with open_engine(path, 64, 1) as engine:
            assert {chat: rendered(engine, *asked) for chat, asked in CHATS.items()} == texts


def test_tokens_that_the_settings_do_not_name_are_no_text(plain: Path, tmp_path: Path) -> None:
    """The configuration has ids of them, and llama.cpp would take others."""
    text = "{{ bos_token }}[{% if unk_token is defined %}{{ unk_token }}{% endif %}]{{ messages[0].content }}"
    paths = with_templates(plain, tmp_path, {"default": text + "{{ eos_token }}"}, as_files=False)
    for part in ("checkpoint", "onnx"):
        path = tmp_path / part / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({"chat_template": settings["chat_template"], "bos_token": None}))
    write_gguf(read_checkpoint(tmp_path / "checkpoint"), paths[0])
    for path in paths:
        with open_engine(path, 64, 1) as engine:
            assert rendered(engine, [USER], {}) == f"[]{USER['content']}"


def test_only_named_templates_are_an_error_that_names_them(plain: Path, tmp_path: Path) -> None:
    templates = {"tool_use": "{{ tools | length }}{{ eos_token }}", "rag": "{{ documents | length }}"}
    for path in with_templates(plain, tmp_path, templates, as_files=True):
        with open_engine(path, 64, 1) as engine:
            assert rendered(engine, [USER], {"tools": TOOLS}) == "1<|im_end|>"
            with pytest.raises(
                ChatTemplateError, match=r"no default chat template, only named ones \(rag, tool_use\)"
            ):
                chat_ids(engine, [USER])
