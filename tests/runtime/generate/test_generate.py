from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_gguf import TEXT, chain_model
from tokenizers import Tokenizer

from minigpt_edge_runtime.engines.engine import Engine
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import UsageError
from minigpt_edge_runtime.generate.generate import CHUNK, Generation, PromptTooLong, Session, document_ids
from minigpt_edge_runtime.generate.sampling import Sampling
from minigpt_edge_runtime.generate.streaming import TextStream

GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)
SAID = "漢é🙂 licence"


def ids_of(tokenizer: Tokenizer, prompt: str, said: str) -> list[int]:
    return tokenizer.encode(prompt).ids[-1:] + tokenizer.encode(said).ids + [2]


@pytest.fixture
def speaker(tmp_path: Path, tokenizer: Tokenizer, in_either: Callable[[Path], Path]) -> Path:
    """Says SAID after "X" and ends."""
    return in_either(chain_model(tmp_path / "speaker.gguf", tokenizer, ids_of(tokenizer, "X", SAID)))


def after_x(engine: Engine, **options: object) -> Generation:
    return Generation(Session(engine), document_ids(engine, "X"), **{"sampling": GREEDY, **options})  # type: ignore[arg-type]


def test_characters_are_never_split(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = after_x(engine)
        pieces = list(generation)
    assert "".join(pieces) == SAID
    assert pieces[:3] == ["漢", "é", "🙂"]  # several tokens each, shown whole
    assert generation.finish_reason == "end"
    assert generation.tokens > len(pieces) and generation.stats()["prompt_tokens"] == 2
    assert generation.stats()["tokens_per_second"] > 0  # type: ignore[operator]


def test_a_cut_character_is_replaced_not_lost(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = after_x(engine, max_tokens=1)
        assert list(generation) == ["\ufffd"]
    assert (generation.finish_reason, generation.tokens) == ("length", 1)


def test_stop_strings_end_the_text_before_them(speaker: Path) -> None:
    with open_engine(speaker, 64, 1) as engine:
        generation = after_x(engine, stop=["zzz", "🙂 li"])  # over the border of two tokens
        assert "".join(generation) == "漢é"
        assert generation.finish_reason == "stop"
        assert "".join(after_x(engine, stop=["licences"])) == SAID


def test_a_stream_holds_back_only_what_may_be_a_stop() -> None:
    stream = TextStream(["END", "DONE"])
    assert stream.push(b"a E") == "a " and stream.push(b"N") == "" and stream.push(b"x") == "ENx"
    assert stream.push(b"b DOEN") == "b DO" and stream.push(b"D more") == "" and stream.stopped
    assert stream.push(b"again", last=True) == ""
    unfinished = TextStream(["END", "é" * 100_000])
    assert unfinished.push(b"to the EN") == "to the " and unfinished.push(b"", last=True) == "EN"
    assert TextStream().push(b"\xff\xe2\x82") == "\ufffd"


def test_a_full_context_ends_it_and_a_long_prompt_is_refused(either: Path) -> None:
    with open_engine(either, 12, 1) as engine:
        session = Session(engine)
        generation = Generation(session, [5, 6], Sampling(temperature=5.0, top_k=0), max_tokens=100)
        list(generation)
        assert generation.finish_reason in ("context", "end")
        assert 2 + generation.tokens <= 13
        with pytest.raises(PromptTooLong, match="the prompt has 13 tokens, the context holds 12"):
            Generation(session, document_ids(engine, "é" * 6))
        with pytest.raises(UsageError, match="max_tokens"):
            Generation(session, [5], max_tokens=0)
        with pytest.raises(UsageError, match="no tokens"):
            Generation(session, [])


def test_a_cached_beginning_changes_nothing_but_the_work(either: Path) -> None:
    with open_engine(either, 512, 1) as engine, open_engine(either, 512, 1) as other:
        session = Session(engine)
        whole = engine.tokenize(TEXT)
        assert len(whole) > 100
        prompts = [whole[:60], whole[:60], whole[:80], [*whole[:50], 7, *whole[51:90]], whole[:30], [9, 8, 7]]
        cached = []
        for prompt in prompts:
            reused = Generation(session, prompt, GREEDY, max_tokens=12)
            alone = Generation(Session(other), prompt, GREEDY, max_tokens=12)
            other.reset()
            assert list(reused) == list(alone) and alone.cached_tokens == 0
            cached.append(reused.cached_tokens)
        assert cached == [0, 59, 60, 50, 29, 0]  # a whole prompt's last token is evaluated again


def test_an_answer_goes_on_from_its_own_cache(either: Path) -> None:
    with open_engine(either, 256, 1) as engine:
        session = Session(engine)
        first = Generation(session, [5, 6, 7], GREEDY, max_tokens=10)
        list(first)
        held = engine.cached
        assert held == 3 + 9  # the last token said has not been evaluated
        engine.reset()  # somebody else's doing
        again = Generation(session, [5, 6, 7, 8], GREEDY, max_tokens=1)
        list(again)
        assert again.cached_tokens == 0


def test_a_fresh_answer_uses_nothing_cached(either: Path) -> None:
    with open_engine(either, 256, 1) as engine:
        session = Session(engine)
        list(Generation(session, [5, 6, 7], GREEDY, max_tokens=2))
        fresh = Generation(session, [5, 6, 7], GREEDY, max_tokens=2, fresh=True)
        list(fresh)
        assert fresh.cached_tokens == 0 and engine.cached == 4


def test_cancelling_ends_it_between_tokens_and_within_a_long_prompt(either: Path) -> None:
    with open_engine(either, 1024, 1) as engine:
        session = Session(engine)
        generation = Generation(session, [5, 6], Sampling(temperature=5.0, top_k=0), max_tokens=500)
        for shown, _ in enumerate(generation):
            if shown == 2:
                generation.cancel()
        assert generation.finish_reason == "cancelled" and generation.tokens < 20
        long = Generation(session, [5] * (2 * CHUNK + 50), GREEDY)
        long.cancel()
        assert list(long) == [] and long.finish_reason == "cancelled" and engine.cached == 1


def test_an_abandoned_answer_leaves_the_session_usable(either: Path) -> None:
    with open_engine(either, 256, 1) as engine:
        session = Session(engine)
        expected = "".join(Generation(session, [5, 6, 7], GREEDY, max_tokens=20))
        for _ in Generation(session, [5, 6, 7, 9], GREEDY, max_tokens=20):
            break
        assert "".join(Generation(session, [5, 6, 7], GREEDY, max_tokens=20)) == expected


def test_an_answer_whose_cache_another_one_took_says_so(either: Path) -> None:
    with open_engine(either, 256, 1) as engine:
        session = Session(engine)
        first = iter(Generation(session, [5, 6, 7], GREEDY, max_tokens=20))
        next(first)
        list(Generation(session, [9, 8], GREEDY, max_tokens=2))
        with pytest.raises(UsageError, match="another answer began"):
            list(first)
