"""The tokenizer of a model directory: text to ids, ids to bytes, and what the settings say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import CHAT_TEMPLATE, TEXT
from tiny_onnx import SETTINGS, edit_json
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minigpt_edge_runtime.bundle.verify import SCRIPTS
from minigpt_edge_runtime.engines.text import TextCodec
from minigpt_edge_runtime.errors import EdgeError


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A directory with a byte-level tokenizer."""
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


def pieces_tokenizer(metaspace: bool, prepend: bool = True) -> Tokenizer:
    """SentencePiece's pieces with byte fallback: Unigram with Metaspace, or BPE as LLaMA 2 has it."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["\u2581", "\u2581the", "\u2581licence", "th", "e", "t", "h", "l", "i", "c", "n", "a", "\u2581a"]
    specials = ["<unk>", "<s>", "</s>"]
    if metaspace:
        scores = [(text, -float(at)) for at, text in enumerate([*specials, *byte_tokens, *words])]
        tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
        scheme = "always" if prepend else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme, split=False)]
        )
    else:
        vocabulary = {text: at for at, text in enumerate([*specials, *byte_tokens, *words])}
        merges = [("t", "h"), ("\u2581", "a")]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
        steps = [normalizers.Prepend("\u2581")] if prepend else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path, **settings: Any) -> TextCodec:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return TextCodec(folder)


def test_byte_level_texts_come_back(folder: Path, tokenizer: Tokenizer) -> None:
    codec = TextCodec(folder)
    for text in (TEXT, *SCRIPTS, "", " ", "  two", "a\u0000b"):
        ids = codec.tokenize(text)
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
        assert codec.detokenize(ids) == b"".join(map(codec.piece, ids)) == text.encode()


@pytest.mark.parametrize("metaspace", [True, False])
@pytest.mark.parametrize("prepend", [True, False])
def test_pieces_with_byte_fallback_come_back(tmp_path: Path, metaspace: bool, prepend: bool) -> None:
    codec = saved(pieces_tokenizer(metaspace, prepend), tmp_path)
    # Metaspace puts no second space before a text that begins with one
    spaced = () if metaspace and prepend else (" ", "  the")
    for text in (*SCRIPTS, *spaced, "the licence", "a", "", "the ", "漢é🙂"):
        ids = codec.tokenize(text)
        assert codec.detokenize(ids) == text.encode()
        assert codec.detokenize([1, *ids, 2]) == text.encode()
    assert codec.piece(3 + 0xE6) == b"\xe6" and codec.piece(codec.tokenize("the a")[-1]) == b" a"
    assert codec.document_start("</s>") == 2


def test_special_tokens(folder: Path) -> None:
    codec = TextCodec(folder, [7])
    assert codec.tokenize("<|im_end|>", special=True) == [2]
    plain = codec.tokenize("a<|im_end|>b")
    assert 2 not in plain and codec.detokenize(plain) == b"a<|im_end|>b"
    assert codec.detokenize([1, 50, 2]) == codec.piece(50)
    assert codec.detokenize([1, 2], special=True) == b"<|im_start|><|im_end|>"
    assert [token for token in range(codec.vocab_size) if codec.is_end(token)] == [0, 2, 7]
    assert (codec.special_text("bos"), codec.special_text("eos")) == ("<|im_start|>", "<|im_end|>")
    assert codec.document_start() == 0 and codec.document_start("<|im_start|>") == 1
    with pytest.raises(EdgeError, match="not a token of this model"):
        codec.document_start("<|none|>")
    assert codec.piece(10_000) == b""  # a row beyond the vocabulary, as padded embeddings have


def test_the_first_token_of_all_may_end_a_text(folder: Path, tokenizer: Tokenizer) -> None:
    saved(pieces_tokenizer(metaspace=True), folder, eos_token="<unk>")
    assert TextCodec(folder).is_end(0)


def test_added_tokens_that_are_not_special_are_text(folder: Path, tokenizer: Tokenizer) -> None:
    more = Tokenizer.from_str(tokenizer.to_str())
    more.add_tokens([AddedToken("<an article>", special=False, normalized=False)])
    codec = saved(more, folder)
    ids = codec.tokenize("the <an article> 97")
    assert more.token_to_id("<an article>") in ids and codec.detokenize(ids) == b"the <an article> 97"


def test_a_token_with_a_symbol_of_no_byte_is_its_text(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["two words \u2581"] = 340
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert TextCodec(folder).piece(340).decode() == "two words \u2581"


def test_a_tokenizer_that_cuts_and_pads_does_neither(folder: Path, tokenizer: Tokenizer) -> None:
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(5)
    cutting.enable_padding(length=400)
    codec = saved(cutting, folder)
    assert codec.tokenize(TEXT) == tokenizer.encode(TEXT).ids


def test_a_rendered_prompt_is_taken_as_it_is(folder: Path, tokenizer: Tokenizer) -> None:
    around = Tokenizer.from_str(tokenizer.to_str())
    around.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    codec = saved(around, folder, add_bos_token=True)
    assert codec.tokenize("") == [] and not {1, 2} & set(codec.tokenize("a"))


def test_chat_templates(folder: Path) -> None:
    assert TextCodec(folder).chat_templates == {}
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    assert TextCodec(folder).chat_templates == {"default": CHAT_TEMPLATE}
    named = [{"name": "tool_use", "template": "other"}, {"name": "default", "template": "the one"}]
    edit_json(folder / "tokenizer_config.json", chat_template=named)
    assert TextCodec(folder).chat_templates == {"tool_use": "other", "default": "the one"}
    edit_json(folder / "tokenizer_config.json", chat_template=named[:1])
    assert TextCodec(folder).chat_templates == {"tool_use": "other"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("of a folder")
    assert TextCodec(folder).chat_templates == {"rag": "of a folder"}
    (folder / "chat_template.jinja").write_text("of the file é", encoding="utf-8")
    assert TextCodec(folder).chat_templates == {"default": "of the file é", "rag": "of a folder"}


def test_special_tokens_may_be_records(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token={"content": "<|im_start|>", "lstrip": False})
    codec = TextCodec(folder)
    assert codec.special_text("eos") == "<|im_start|>" and codec.is_end(1)
    (folder / "tokenizer_config.json").unlink()
    codec = TextCodec(folder)
    assert codec.special_text("bos") == codec.special_text("eos") == "" and codec.document_start() == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "does not exist"),
        ("tokenizer.json", b"", "can't be read"),
        ("tokenizer.json", b"{}", "can't be read"),
        ("tokenizer.json", b"\xff\xfe", "not UTF-8"),
        ("tokenizer_config.json", b"{", "not valid JSON"),
        ("tokenizer_config.json", b"[]", "holds no settings"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_damaged_files_are_named(folder: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(EdgeError, match=message) as caught:
        TextCodec(folder)
    assert name in caught.value.message and caught.value.hint


def test_a_truncated_tokenizer_is_damaged(folder: Path) -> None:
    path = folder / "tokenizer.json"
    for size in (10, path.stat().st_size // 2, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(EdgeError, match="can't be read"):
            TextCodec(folder)
