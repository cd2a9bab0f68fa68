"""Every shape of tokenizer that we take: transformers, the GGUF, ONNX and Modelfile agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from tokenizer_shapes import END, START, STOP, Shape, added, around, byte_level, pieces, shapes, write_base

from minigpt_edge.models.base_model import BaseModel, resolve_model
from minigpt_edge.prune.vocabulary.choose import choose_tokens, count_tokens
from minigpt_edge.prune.vocabulary.trim import config_token_ids, remap_config, trim_tokenizer
from minigpt_edge.ship.modelfile import modelfile, stop_texts
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.onnx.genai import genai_config
from minigpt_edge_export.tokens.prompts import CONVERSATIONS
from minigpt_edge_runtime.engines.llama_vocabulary import LlamaVocabulary, open_vocabulary
from minigpt_edge_runtime.engines.text import TextCodec, open_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.generate.chat import chat_ids

SHAPES = shapes()
TEXTS = ["The tenant's  12 rights\n\n(a) x  \n", "Закон 法律 \t\tf(x):\n        return 1", "a"]
LEADING = ["  two", " one", "\n x", ""]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def base_of(name: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(cache))
    return resolve_model(str(write_base(folder / "base", SHAPES[name])), offline=True)


def as_shipped(text: str, vocabulary: LlamaVocabulary) -> list[int]:
    """A rendered prompt as llama.cpp's server and ollama tokenize it."""
    bos = vocabulary.special_text("bos")
    begun = vocabulary.adds_start and bos and text.startswith(bos)
    return vocabulary.tokenize(text[len(bos) :] if begun else text, special=True, whole=True)


def prompts(tokenizer: Any) -> list[tuple[Any, str, list[int]]]:
    """The conversations that the chat template takes: text and ids, as transformers makes them."""
    made = []
    for messages in CONVERSATIONS if tokenizer.chat_template else ():
        given: dict[str, Any] = {"conversation": messages, "add_generation_prompt": True}
        try:
            text = tokenizer.apply_chat_template(**given, tokenize=False)
        except Exception:  # it takes no system message
            continue
        made.append(
            (messages, text, tokenizer.apply_chat_template(**given, tokenize=True, return_dict=False))
        )
    return made


def check(checkpoint: Path, folder: Path) -> None:
    """The files made of a checkpoint against transformers on the same checkpoint."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    decoder = read_checkpoint(checkpoint)
    write_gguf(decoder, folder / "model.gguf")
    genai = genai_config(decoder, "model.onnx")["model"]
    codec = TextCodec(checkpoint, ends := listed(genai["eos_token_id"]))
    stated = transformers.GenerationConfig.from_pretrained(checkpoint)
    assert set(ends) == set(listed(stated.eos_token_id))
    stops = {
        line[16:-1]
        for line in modelfile("m.gguf", None, stop_texts(checkpoint)).split("\n")
        if "stop" in line
    }
    start = json.loads((checkpoint / "config.json").read_text())["minigpt_edge"]["document_start"]
    with open_vocabulary(folder / "model.gguf") as vocabulary:
        assert start in (END, vocabulary.special_text("bos"))
        for token in range(vocabulary.vocab_size):
            assert vocabulary.is_end(token) == codec.is_end(token) == (token in ends), token
        assert stops == {theirs.decode([token], skip_special_tokens=False) for token in ends}
        for messages, text, ids in prompts(theirs):
            assert chat_ids(vocabulary, messages) == ids, text
            assert as_shipped(text, vocabulary) == chat_ids(codec, messages) == ids
        everything = [f"x{token}y {token} z" for token in theirs.get_added_vocab()]
        for text in [*TEXTS, *LEADING, *everything]:
            ids = theirs(text, add_special_tokens=False).input_ids
            assert vocabulary.tokenize(text, special=True) == codec.tokenize(text, special=True) == ids, text
            assert vocabulary.tokenize(text) == codec.tokenize(text), text
            if not theirs.chat_template:
                assert vocabulary.tokenize(text, special=True, whole=True) == theirs(text).input_ids


def listed(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


@pytest.mark.parametrize("name", SHAPES)
def test_all_formats_agree_with_transformers(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    shape, base = SHAPES[name], base_of(name, tmp_path, cache, monkeypatch)
    check(base.path, tmp_path)
    was = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    now = transformers.AutoTokenizer.from_pretrained(base.path)
    assert ([p[2] for p in prompts(was)] == [p[2] for p in prompts(now)]) == shape.same_prompts
    assert ([was(t).input_ids for t in TEXTS] == [now(t).input_ids for t in TEXTS]) == shape.same_texts
    if list(SHAPES).index(name) % 3 == 0:
        check(trimmed(base.path, tmp_path / "trimmed"), tmp_path)


def trimmed(checkpoint: Path, out: Path, texts: Sequence[str] = TEXTS) -> Path:
    """The checkpoint with the tokens of some texts alone."""
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    names = ("config.json", "generation_config.json")
    configs = [json.loads((checkpoint / name).read_text()) for name in names]
    counts = count_tokens(open_tokenizer(data), texts)
    kept = choose_tokens(data, counts, always=config_token_ids(*configs))
    moved = trim_tokenizer(checkpoint, out, kept)
    for name, config in zip(names, remap_config(*configs, moved), strict=True):
        (out / name).write_text(json.dumps(config))
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][kept]
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("name", ["smollm", "llama 2"])
def test_formats_hold_a_vocabulary_of_which_the_texts_need_no_merge(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(name, tmp_path, cache, monkeypatch)
    check(trimmed(base.path, tmp_path / "trimmed", ["x"]), tmp_path)


def _refused() -> dict[str, tuple[Shape, str]]:
    chat, names = byte_level("smollm", END, START, STOP), {"bos_token": END, "eos_token": STOP}
    spaces = pieces("first")
    spaces["pre_tokenizer"]["split"] = True
    flags = {
        f"{flag}, special {special}": (
            Shape(added(chat, "<sep>", special=special, **{flag: True}), names),
            f"'<sep>' has the flag {flag}.*GGUF can't express",
        )
        for flag in ("lstrip", "rstrip", "single_word")
        for special in (False, True)
    }
    stated = {"400": {"content": "<sep>", "rstrip": True, "special": True}}
    return flags | {
        "rstrip in the settings alone": (
            Shape(added(chat, "<sep>", special=True), {**names, "added_tokens_decoder": stated}),
            "'<sep>' has the flag rstrip",
        ),
        "normalized, after Prepend": (
            Shape(added(pieces(), "<sep>", normalized=True)), "'<sep>' has the flag normalized"
        ),
        "nine ends": (
            Shape(byte_level("gpt-2", "<e>"), {"eos_token": "<e>"}, {"eos_token_id": list(range(9))}),
            "besides EOS 8 tokens end a generation.*GGUF has room for 5",
        ),
        "an end that is no token": (Shape(chat, names, {"eos_token_id": [2, 999]}), "999 is outside"),
        "two tokens before texts": (
            Shape(around(chat, f"{END} {START}"), names), "several tokens around a text"
        ),
        "another token than BOS": (Shape(around(chat, START), names), "the bos token is"),
        "spaces split off": (Shape(spaces), "treats spaces in a way that llama.cpp has not"),
        "overlapping tokens": (
            Shape(added(chat, "<a><", "<b>long"), names), r"llama.cpp can't do.*such as 'a<a><"
        ),
        "nothing to start with": (Shape(byte_level("gpt-2", "<x>")), "no token that could start a text"),
    }  # fmt: skip


REFUSED = _refused()


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_format_can_not_express_is_refused_when_the_base_is_read(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, message = REFUSED[name]
    monkeypatch.setenv("MINIGPT_EDGE_CACHE", str(cache))
    with pytest.raises(EdgeError, match=message) as caught:
        resolve_model(str(write_base(tmp_path / "base", shape)), offline=True)
    assert caught.value.hint


def test_new_end_tokens_are_told(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = base_of("smollm", tmp_path, cache, monkeypatch).notes
    assert notes == (f"answers also end at '{END}', as llama.cpp or the tokenizer has it",)
