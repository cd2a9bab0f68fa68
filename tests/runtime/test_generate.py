from __future__ import annotations

from pathlib import Path

import pytest
from tiny_gguf import chain_model, make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.engine import Sampling, open_engine
from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate import Generation, StopFilter

GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)
SAID = "漢é🙂 licence"


def ids_of(tokenizer: Tokenizer, prompt: str, said: str) -> list[int]:
    return tokenizer.encode(prompt).ids[-1:] + tokenizer.encode(said).ids + [2]


@pytest.fixture
def speaker(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Says SAID after "X" and ends."""
    return chain_model(tmp_path / "speaker.gguf", tokenizer, ids_of(tokenizer, "X", SAID))


def test_characters_are_never_split(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = Generation(engine, "X", sampling=GREEDY)
        pieces = list(generation)
    assert "".join(pieces) == SAID
    assert pieces[:3] == ["漢", "é", "🙂"]  # several tokens each, shown whole
    assert generation.finish_reason == "end"
    assert generation.tokens > len(pieces) and generation.prompt_tokens == 2
    assert generation.stats()["tokens_per_second"] > 0  # type: ignore[operator]


def test_a_cut_character_is_replaced_not_lost(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = Generation(engine, "X", sampling=GREEDY, max_tokens=1)
        assert list(generation) == ["\ufffd"]
    assert (generation.finish_reason, generation.tokens) == ("length", 1)


def test_stop_strings_end_the_text_before_them(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = Generation(engine, "X", sampling=GREEDY, stop=["zzz", "cen"])
        assert "".join(generation) == "漢é🙂 li"
        assert generation.finish_reason == "stop"
        generation = Generation(engine, "X", sampling=GREEDY, stop=["licences"])
        assert "".join(generation) == SAID


def test_stop_filter_holds_back_only_what_may_be_a_stop() -> None:
    stops = StopFilter(["END", "DONE"])
    assert stops.push("a E") == "a " and stops.push("N") == "" and stops.push("x") == "ENx"
    assert stops.push("b DOEN") == "b DO" and stops.push("D more") == "" and stops.stopped
    assert stops.push("again") == "" and stops.flush() == ""
    unfinished = StopFilter(["END"])
    assert unfinished.push("to the EN") == "to the " and unfinished.flush() == "EN"


def test_a_full_context_ends_it_and_a_long_prompt_is_refused(model: Path) -> None:
    with open_engine(model, 12, 1) as engine:
        generation = Generation(engine, "X", sampling=Sampling(temperature=5.0, top_k=0), max_tokens=100)
        list(generation)
        assert generation.finish_reason in ("context", "end")
        assert generation.prompt_tokens + generation.tokens <= 13
        with pytest.raises(EdgeError, match="the prompt has 13 tokens, the context holds 12"):
            list(Generation(engine, "é" * 6))
        with pytest.raises(UsageError, match="max_tokens"):
            list(Generation(engine, "X", max_tokens=0))


def test_chat_puts_the_prompt_into_the_template(model: Path) -> None:
    with open_engine(model, 256, 1) as engine:
        ids = Generation(engine, "Hi", chat=True, system="Be brief").prompt_ids()
        text = engine.detokenize(ids, special=True).decode()
        plain = Generation(engine, "Hi").prompt_ids()
    assert text == (
        "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[0] == 1 and plain[0] == 0 and len(plain) == 3


def test_chat_without_or_with_a_broken_template_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, template, message in (
        ("a", None, "no chat template"),
        ("b", "{{ messages.x.y }}", "template failed"),
    ):
        path = make_gguf(tmp_path / f"{name}.gguf", tokenizer, chat_template=template)
        with open_engine(path, 64, 1) as engine, pytest.raises(EdgeError, match=message):
            Generation(engine, "Hi", chat=True).prompt_ids()
