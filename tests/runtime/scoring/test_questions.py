from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import TEXT, chain_model, texts_content
from tokenizers import Tokenizer

from minigpt_edge_runtime.bench.measure import measure_quality
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.scoring.likelihood import token_nll


def question(context: str, choices: list[str], answer: int = 0) -> dict[str, Any]:
    return {"context": context, "choices": choices, "answer": answer}


def held_out(*questions: dict[str, Any]) -> dict[str, Any]:
    return {"format": 1, **texts_content(), "questions": list(questions)}


def test_the_choice_is_the_one_with_the_least_nll_per_byte(model: Path) -> None:
    asked = [
        question(TEXT[i : i + 60], [TEXT[i + 60 : i + 90], TEXT[:25], " zz 42", TEXT[40:100]], i % 4)
        for i in range(0, 120, 7)  # some of them cut a word, so that tokens span the cut
    ]
    choice = measure_quality(model, held_out(*asked), threads=1)["multiple_choice"]

    with open_engine(model, 512, 1, logits_all=True) as engine:
        start = engine.document_start("<|endoftext|>")

        def nll(text: str) -> float:
            return float(token_nll(engine, [start, *engine.tokenize(text)]).sum())

        expected = [
            int(
                np.argmin(
                    [(nll(q["context"] + c) - nll(q["context"])) / len(c.encode()) for c in q["choices"]]
                )
            )
            for q in asked
        ]
        spans = [
            engine.tokenize(q["context"] + q["choices"][0])[: len(ids := engine.tokenize(q["context"]))]
            != ids
            for q in asked
        ]
    assert any(spans) and not all(spans)
    assert choice["answers"] == expected and len(set(expected)) > 1
    right = sum(q["answer"] == chosen for q, chosen in zip(asked, expected, strict=True))
    assert choice["accuracy"] == right / len(asked) and choice["questions"] == len(asked)
    assert choice["chance"] == 0.25
    assert choice["stderr"] == pytest.approx(
        (choice["accuracy"] * (1 - choice["accuracy"]) / len(asked)) ** 0.5
    )


def test_a_model_that_knows_the_text_answers_right(tmp_path: Path, tokenizer: Tokenizer) -> None:
    context, true = "Permission is", " to any copy"
    ids = tokenizer.encode(context + true, add_special_tokens=False).ids
    known = chain_model(tmp_path / "known.gguf", tokenizer, [0, *ids])
    choices = [" of charge", true, " in the software", " deal"]
    result = measure_quality(known, held_out(question(context, choices, 1)), threads=1)
    assert result["multiple_choice"]["answers"] == [1] and result["multiple_choice"]["accuracy"] == 1


def test_without_questions_there_is_no_multiple_choice(model: Path) -> None:
    assert measure_quality(model, texts_content(), threads=1)["multiple_choice"] is None


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ({"context": "a"}, "question 1 .* damaged"),
        (question("a", ["b", "c"], 2), "answer 2 of 2 choices"),
        (question("a", ["b"]), "answer 0 of 1 choices"),
        (question("", ["b", "c"]), "a text is empty"),
        (question("a", ["b", ""]), "a text is empty"),
    ],
)
def test_damaged_questions_are_refused(model: Path, damaged: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        measure_quality(model, held_out(question("a", ["b", "c"]), damaged), threads=1)


def test_a_question_longer_than_the_context_is_refused(model: Path) -> None:
    with pytest.raises(EdgeError, match="a context of [0-9,]+ tokens is not possible"):
        measure_quality(model, held_out(question(TEXT * 20, [TEXT * 20, "b"])), threads=1)
