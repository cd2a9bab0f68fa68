"""Answers under a grammar: whatever the tokenizer, the text fits, and what can't fit is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import TEXT, make_gguf
from tiny_onnx import make_onnx
from tiny_sentencepiece import sentencepiece_json
from tokenizers import Tokenizer

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.generate import Generation, Session
from minigpt_edge_runtime.generate.grammar import (
    Constraint,
    GrammarError,
    Grammars,
    from_gbnf,
    json_rule,
    text_rule,
)
from minigpt_edge_runtime.generate.sampling import Sampling

SCHEMA = {
    "type": "object",
    "properties": {"the software": {"enum": ["copies of", 1.5]}, "n": {"type": "integer"}},
    "required": ["the software", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a SentencePiece tokenizer, which writes a space before every text, in both formats."""
    folder = tmp_path_factory.mktemp("spaced")
    tokenizer = Tokenizer.from_str(json.dumps(sentencepiece_json([TEXT, json.dumps(SCHEMA)])))
    onnx = make_onnx(make_gguf(folder / "made.gguf", tokenizer), folder / "tiny", tokenizer)
    write_gguf(read_checkpoint(folder / "tiny-checkpoint"), folder / "tiny.gguf")
    return {"gguf": folder / "tiny.gguf", "onnx": onnx}


@pytest.fixture(params=["bytes gguf", "bytes onnx", "spaces gguf", "spaces onnx"])
def engine(
    request: pytest.FixtureRequest, model: Path, onnx_model: Path, spaced: dict[str, Path]
) -> Iterator[Engine]:
    kind, name = request.param.split()
    path = spaced[name] if kind == "spaces" else {"gguf": model, "onnx": onnx_model}[name]
    with open_engine(path, 512, 1) as opened:
        yield opened


def said(engine: Engine, constraint: Constraint, **settings: Any) -> str:
    sampling = Sampling(**{"temperature": 2.0, "seed": 3, **settings})
    generation = Generation(Session(engine), [5], sampling, 300, constraint=constraint)
    text = "".join(generation)
    assert generation.finish_reason == "end", text
    return text


def test_a_random_model_writes_what_the_grammar_says(engine: Engine) -> None:
    grammars = Grammars(engine)
    for seed in range(3):
        text = said(engine, grammars.constraint(f"start: {json_rule(SCHEMA)}"), seed=seed)
        found = json.loads(text)
        assert found["the software"] in ("copies of", 1.5) and isinstance(found["n"], int)
    framed = f'start: {text_rule(engine, "<the software>")} " copy" /[ab]{{3}}/'
    text = said(engine, grammars.constraint(framed), temperature=0)
    assert text[:-3] == "<the software> copy" and set(text[-3:]) <= {"a", "b"}


def test_forced_text_has_the_tokens_that_a_model_would_write(engine: Engine) -> None:
    """So that a fine-tuned model sees its own calls as it was taught them."""
    text = "{copies of the software}"
    constraint = Grammars(engine).constraint(f'start: {text_rule(engine, text)} "."')
    tokens = []
    while not tokens or not constraint.accept(tokens[-1]):
        allowed = np.isfinite(constraint.masked(np.zeros(engine.vocab_size, np.float32)))
        tokens.append(int(max(np.flatnonzero(allowed), key=lambda token: len(engine.piece(int(token))))))
    plain = engine.tokenize(text + ".")
    assert tokens == (plain if engine.piece(plain[0]) != b" " else plain[1:])


def test_special_tokens_in_a_text_are_those_tokens(model: Path) -> None:
    with open_engine(model, 64, 1) as engine:
        constraint = Grammars(engine).constraint(f"start: {text_rule(engine, '<|im_start|>The')}")
        allowed = np.isfinite(constraint.masked(np.zeros(engine.vocab_size, np.float32)))
        assert np.flatnonzero(allowed).tolist() == [1]


def test_a_vocabulary_that_can_not_write_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(model, 64, 1) as engine:
        without = Grammars(engine)
        piece = engine.piece
        monkeypatch.setattr(engine, "piece", lambda token: b"" if b"}" in piece(token) else piece(token))
        constraint = without.constraint('start: "{}"')
        with pytest.raises(GrammarError, match="no token of this model fits|can't go on"):
            said(engine, constraint)


def test_bad_grammars_and_a_missing_library(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_gbnf('root ::= "a" | "b"').strip()
    with pytest.raises(UsageError, match="the grammar can't be read"):
        from_gbnf("root = a")
    with open_engine(model, 64, 1) as engine:
        with pytest.raises(UsageError, match="Unimplemented keys"):
            Grammars(engine).constraint(f"start: {json_rule({'type': 'array', 'contains': {}})}")
        # What a schema says to llguidance itself is not the client's to say.
        strict = {"type": "object", "not": {}, "x-guidance": {"lenient": True}}
        with pytest.raises(UsageError, match="not"):
            Grammars(engine).constraint(f"start: {json_rule(strict)}")
        monkeypatch.setitem(sys.modules, "llguidance", None)
        with pytest.raises(EdgeError, match="needs llguidance") as caught:
            Grammars(engine).constraint('start: "a"')
    assert caught.value.hint == 'pip install "minigpt-edge-runtime[grammar]"'
