"""Bits per byte of a checkpoint against a plain computation with transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from finetune_helpers import START, make_checkpoint, make_corpus

from minigpt_edge_runtime.errors import EdgeError

torch = pytest.importorskip("torch")


def test_evaluate_counts_every_byte_from_the_document_start(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from minigpt_edge.evaluation.perplexity import evaluate

    checkpoint = make_checkpoint(tmp_path / "model")
    texts = make_corpus(tmp_path / "corpus")["validation"]
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    windows = json.loads(texts.read_text())["windows"]
    nll = 0.0
    for window in windows:
        ids = [tokenizer.token_to_id(START), *tokenizer.encode(window["text"], add_special_tokens=False).ids]
        assert tokenizer.decode(ids[1:]) == window["text"]
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        nll -= float(sum(log_p[i, token] for i, token in enumerate(ids[1:])))
    scores = evaluate(checkpoint, texts)
    size, base = sum(w["bytes"] for w in windows), sum(w["base_tokens"] for w in windows)
    assert scores["nll"] == pytest.approx(nll, rel=2e-3)  # bf16 products
    assert scores["bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=2e-3)
    assert scores["perplexity_per_base_token"] == pytest.approx(math.exp(nll / base), rel=2e-2)


def test_batches_and_padding_do_not_change_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.evaluation import perplexity
    from minigpt_edge.models import precision
    from minigpt_edge.models.checkpoint import load_model

    monkeypatch.setattr(precision, "compute_dtype", lambda: torch.float32)
    model = load_model(make_checkpoint(tmp_path, unequal=True))
    sequences = [torch.randint(0, 300, (n,)).tolist() for n in (5, 60, 1, 33, 34)]
    together = perplexity.sum_nll(model, sequences)
    alone = sum(perplexity.sum_nll(model, [sequence]) for sequence in sequences)
    assert together == pytest.approx(alone, rel=1e-5)


def test_a_tokenizer_that_cuts_and_pads_changes_nothing(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from minigpt_edge.evaluation.perplexity import evaluate

    checkpoint = make_checkpoint(tmp_path / "model")
    texts = make_corpus(tmp_path / "corpus")["validation"]
    scores = evaluate(checkpoint, texts)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    assert evaluate(checkpoint, texts) == scores


def test_bad_input_is_an_error_with_a_hint(tmp_path: Path) -> None:
    from minigpt_edge.evaluation.perplexity import evaluate

    checkpoint = make_checkpoint(tmp_path / "model", max_position_embeddings=16)
    texts = make_corpus(tmp_path / "corpus")["validation"]
    with pytest.raises(EdgeError, match="context only 16"):
        evaluate(checkpoint, texts)
    data = json.loads(texts.read_text())
    for damage, message in [
        ({**data, "document_start": "<nope>"}, "no document-start token"),
        ({**data, "windows": []}, "no windows"),
        ({**data, "document_start": None}, "document-start token"),
        ({"windows": [{}]}, "not a texts file"),
    ]:
        texts.write_text(json.dumps(damage))
        with pytest.raises(EdgeError, match=message):
            evaluate(checkpoint, texts)
    with pytest.raises(EdgeError, match="does not exist"):
        evaluate(checkpoint, tmp_path / "none.json")
    (checkpoint / "tokenizer.json").write_text("{")
    with pytest.raises(EdgeError, match="can't be read") as caught:
        evaluate(checkpoint, make_corpus(tmp_path / "again")["validation"])
    assert "the checkpoint is" in str(caught.value.hint)


def test_short_texts_still_make_a_reference(tmp_path: Path) -> None:
    """Of texts of fewer than 256 tokens the longest are taken."""
    from safetensors import safe_open

    from minigpt_edge.models.forward import encode, read_tokenizer
    from minigpt_edge.ship.reference import REFERENCE, reference_stage
    from minigpt_edge.stages.console import Log
    from minigpt_edge.stages.stage import Stage

    checkpoint, corpus = make_checkpoint(tmp_path / "model"), make_corpus(tmp_path / "corpus")
    data = json.loads(corpus["validation"].read_text())
    long = [window["text"] for window in data["windows"]]
    data["windows"].insert(0, {"text": "the", "bytes": 3, "base_tokens": 1})
    corpus["validation"].write_text(json.dumps(data))
    text = Stage(tmp_path / "corpus", {"outputs": {"validation.texts.json": ""}}, False)
    with Log() as log:
        made = reference_stage(tmp_path / "work", checkpoint, text, 1, log)
    shortest = min(map(len, encode(read_tokenizer(checkpoint), START, long)))
    with safe_open(made.path / REFERENCE, framework="np") as file:
        assert file.get_tensor("tokens").shape == (3, shortest)
