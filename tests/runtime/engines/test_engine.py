from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import CONTEXT, TEXT, make_gguf
from tokenizers import Tokenizer

from minigpt_edge_runtime.bundle.verify import SCRIPTS
from minigpt_edge_runtime.engines.engine import Fork
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.errors import EdgeError


def test_token_ids_equal_the_tokenizer_and_bytes_come_back(either: Path, tokenizer: Tokenizer) -> None:
    with open_engine(either, 64, 1) as engine:
        assert engine.vocab_size == tokenizer.get_vocab_size()
        for text in [TEXT, *SCRIPTS, "a <|endoftext|>b"[:2], ""]:
            ids = engine.tokenize(text)
            assert ids == tokenizer.encode(text, add_special_tokens=False).ids
            assert engine.detokenize(ids) == text.encode()


def test_special_tokens_are_text_unless_asked(either: Path) -> None:
    with open_engine(either, 64, 1) as engine:
        assert engine.tokenize("<|im_end|>", special=True) == [2]
        plain = engine.tokenize("<|im_end|>")
        assert 2 not in plain and engine.detokenize(plain) == b"<|im_end|>"
        assert engine.detokenize([2]) == b"" and engine.detokenize([2], special=True) == b"<|im_end|>"
        assert engine.document_start() == 0 and engine.document_start("<|im_start|>") == 1
        assert engine.is_end(2) and not engine.is_end(50)
        with pytest.raises(EdgeError, match="not a token of this model"):
            engine.document_start("<|nothing|>")


def test_logits_equal_llama_cpp_used_directly(model: Path) -> None:
    import llama_cpp

    ids = np.random.default_rng(1).integers(3, 300, 600).tolist()  # longer than one batch of 512
    direct = llama_cpp.Llama(
        str(model), n_ctx=CONTEXT, n_batch=600, n_threads=1, logits_all=True, verbose=False
    )
    direct.eval(ids)
    expected = np.array(direct.scores[:600])
    direct.close()
    with open_engine(model, CONTEXT, 1, logits_all=True) as engine:
        logits = engine.logits(ids)
        engine.reset()
        engine.eval(ids[:550])
        for token in ids[550:]:
            last = engine.eval([token])
        np.testing.assert_allclose(last, logits[-1], atol=2e-3)
    assert logits.shape == expected.shape and logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert expected.std() > 0.1


def test_both_engines_compute_the_same_and_agree_about_every_token(model: Path, onnx_model: Path) -> None:
    ids = np.random.default_rng(3).integers(3, 300, 600).tolist()
    with open_engine(model, CONTEXT, 1, True) as gguf, open_engine(onnx_model, CONTEXT, 1, True) as onnx:
        np.testing.assert_allclose(onnx.logits(ids), gguf.logits(ids), atol=5e-3)
        assert onnx.vocab_size == gguf.vocab_size and onnx.chat_templates == gguf.chat_templates
        tokens = range(gguf.vocab_size)
        assert [onnx.piece(token) for token in tokens] == [gguf.piece(token) for token in tokens]
        assert [onnx.is_end(token) for token in tokens] == [gguf.is_end(token) for token in tokens]
        for text in [*SCRIPTS, "<|im_start|>user\n<|im_end|><|endoftext|>", "\udcff lone surrogate"]:
            for special in (False, True):
                assert onnx.tokenize(text, special=special) == gguf.tokenize(text, special=special)
        for name in ("bos", "eos"):
            assert onnx.special_text(name) == gguf.special_text(name) != ""
        assert onnx.adds_start == gguf.adds_start and onnx.document_start() == gguf.document_start()


def test_the_cache_has_an_end_and_reset_empties_it(either: Path) -> None:
    with open_engine(either, 16, 1) as engine:
        first = engine.eval(list(range(3, 19))).copy()
        with pytest.raises(EdgeError, match="17 tokens do not fit into the context of 16"):
            engine.eval([5])
        engine.reset()
        np.testing.assert_array_equal(engine.eval(list(range(3, 19))), first)
        with pytest.raises(ValueError, match="token ids"):
            engine.eval([engine.vocab_size])


def test_the_cache_keeps_a_beginning_and_goes_on_from_it(either: Path) -> None:
    ids = np.random.default_rng(2).integers(3, 300, 60).tolist()
    with open_engine(either, 64, 1) as engine:
        assert engine.cached == 0
        expected = engine.eval(ids).copy()
        assert engine.cached == 60
        engine.keep(25)
        assert engine.cached == 25
        engine.eval([5, 6, 7])
        engine.keep(25)
        np.testing.assert_allclose(engine.eval(ids[25:]), expected, atol=2e-3)
        for count in (61, -1):
            with pytest.raises(ValueError, match="can't be kept of 60"):
                engine.keep(count)
        engine.reset()
        assert engine.cached == 0


@pytest.mark.parametrize("context", [64, 700])
def test_forks_predict_every_token_of_their_branches(either: Path, context: int) -> None:
    """As each text alone: one batch holds a fork or several do, and the cache holds its branches or not."""
    rng = np.random.default_rng(4)
    sizes = [[30, 5, 0, 1, 20, 7, 3, 9, 2, 11, 4], [1, 2, 2], [40, 1], [6, *range(1, 20)]]
    if context == 700:
        sizes += [[30, 150, 300, 60], [600, 1, 90, 2], *[[9, 4, 3, 5]] * 40, [2, *[2] * 70]]
    drawn = [[rng.integers(3, 300, size).tolist() for size in fork] for fork in sizes]
    forks = [Fork(beginning, branches) for beginning, *branches in drawn]
    with open_engine(either, context, 1, logits_all=True) as engine:
        engine.eval([5, 6, 7])  # which is forgotten
        found = [[np.full((len(b), engine.vocab_size), np.nan) for b in fork.branches] for fork in forks]
        order = []
        for index, branch, at, rows in engine.forks(forks):
            found[index][branch][at : at + len(rows)] = rows
            order.append(index)
        assert order == sorted(order) and engine.cached == 0
        for fork, rows in zip(forks, found, strict=True):
            for branch, mine in zip(fork.branches, rows, strict=True):
                if branch:
                    expected = engine.logits([*fork.beginning, *branch[:-1]])[len(fork.beginning) - 1 :]
                    np.testing.assert_allclose(mine, expected, atol=4e-3)
        with pytest.raises(EdgeError, match="do not fit"):
            list(engine.forks([Fork([5], [[6], rng.integers(3, 300, context + 1).tolist()])]))
        with pytest.raises(ValueError, match="token ids"):
            list(engine.forks([Fork([5], [[6], [engine.vocab_size, 5]])]))
        np.testing.assert_allclose(engine.eval([5, 6, 7]).copy(), engine.logits([5, 6, 7])[-1], atol=2e-3)
    with open_engine(either, 64, 1) as engine, pytest.raises(ValueError, match="logits_all"):
        list(engine.forks([Fork([5], [[5]])]))


@pytest.mark.parametrize("context", [1, 2, 3, 5, 9])
def test_forks_in_a_short_context(either: Path, context: int) -> None:
    """Shorter than the number of sequences that llama.cpp could hold."""
    forks = [Fork([5], [[6], [7, 8], [9]]), Fork([4], [[3]])]
    with open_engine(either, context, 1, logits_all=True) as engine:
        if context < 2:
            with pytest.raises(EdgeError, match="do not fit"):
                list(engine.forks(forks))
        else:
            found = [(index, branch, at, len(rows)) for index, branch, at, rows in engine.forks(forks)]
            assert found == [(0, 0, 0, 1), (0, 1, 0, 1), (0, 2, 0, 1), (0, 1, 1, 1), (1, 0, 0, 1)] or (
                found == [(0, 0, 0, 1), (0, 1, 0, 1), (0, 1, 1, 1), (0, 2, 0, 1), (1, 0, 0, 1)]
            )


def test_context_is_the_models_unless_given_and_never_longer(either: Path) -> None:
    with open_engine(either, threads=1) as engine:
        assert engine.context_length == CONTEXT
    with pytest.raises(EdgeError, match="1,025 tokens is not possible"):
        open_engine(either, CONTEXT + 1, 1)


def test_unsupported_models_say_why(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(EdgeError, match="nosucharch"):
        open_engine(make_gguf(tmp_path / "a.gguf", tokenizer, architecture="nosucharch"), 64, 1)
    with pytest.raises(EdgeError, match="no weights"):
        open_engine(make_gguf(tmp_path / "b.gguf", tokenizer, with_weights=False), 64, 1)
    with pytest.raises(EdgeError, match="split model"):
        open_engine(make_gguf(tmp_path / "c.gguf", tokenizer, split_count=2), 64, 1)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EdgeError, match="not a model this runtime can run"):
        open_engine(tmp_path / "notes.txt")
    with pytest.raises(EdgeError, match="does not exist"):
        open_engine(tmp_path / "none.gguf")


def test_missing_tensor_is_llama_cpps_own_message(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = make_gguf(tmp_path / "a.gguf", tokenizer)
    path.write_bytes(path.read_bytes().replace(b"output_norm.weight", b"output_nrom.weight"))
    with pytest.raises(EdgeError, match="output_norm"):
        open_engine(path, 64, 1)


def test_close_twice_is_fine(either: Path) -> None:
    engine = open_engine(either, 64, 1)
    engine.close()
    engine.close()
