from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import END, START, TEXTS, Checkpoint, edit_config, write_reference, write_tokenizer
from tokenizers import Tokenizer

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import quantize
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.scripts import TEN_SCRIPTS
from minigpt_edge_export.verify import Tokenization, check, threshold_of, verify_logits, verify_tokenizer
from minigpt_edge_runtime.errors import EdgeError

ROWS = np.random.default_rng(2).integers(0, 399, (4, 32)).tolist()
SAMPLES = [*TEXTS, *TEN_SCRIPTS.values(), "", "<article> 7 <article>", f"a{END}b"]


def exported(directory: Path, folder: Path) -> Path:
    write_gguf(read_checkpoint(directory), folder / "model.gguf")
    return folder / "model.gguf"


def test_parity_of_a_good_file(equal: Checkpoint, tmp_path: Path) -> None:
    path, reference = exported(equal.path, tmp_path), tmp_path / "reference.safetensors"
    write_reference(reference, equal, ROWS)
    evidence = tmp_path / "evidence.json"
    logits, tokens = check(
        path,
        kind="f16",
        reference=reference,
        tokenization=Tokenization(equal.path / "tokenizer.json", SAMPLES),
        evidence=evidence,
        threads=1,
    )
    assert logits.within(threshold_of("f16")) and logits.bits_ratio == pytest.approx(1, abs=1e-4)
    assert tokens is not None and tokens.good
    assert tokens.texts > len(SAMPLES) + len(TEN_SCRIPTS) + 4  # with the added tokens and prompts
    written = json.loads(evidence.read_text())
    assert written["passed"]
    assert written["logits"]["tokens"] == 128
    assert written["tokens"]["unspellable_bytes"] == []


def test_other_weights_fail_and_leave_evidence(equal: Checkpoint, copied: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    query = weights["model.layers.0.self_attn.q_proj.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = np.ascontiguousarray(query[::-1])
    save_file(weights, copied / "model.safetensors")
    reference, evidence = tmp_path / "reference.safetensors", tmp_path / "evidence.json"
    write_reference(reference, equal, ROWS)
    with pytest.raises(EdgeError, match="logits differ") as caught:
        check(
            exported(copied, tmp_path),
            kind="f16",
            reference=reference,
            tokenization=Tokenization(copied / "tokenizer.json", TEXTS),
            evidence=evidence,
            threads=1,
        )
    assert str(evidence) in (caught.value.hint or "")
    written = json.loads(evidence.read_text())
    assert not written["passed"]
    assert written["logits"]["kl_mean"] > written["thresholds"]["kl_mean"]


def test_another_way_to_split_is_found(copied: Path, tmp_path: Path) -> None:
    edit_config(copied, minigpt_edge={"tokenizer_pre": "tekken"})  # not in our table: taken at its word
    parity = verify_tokenizer(exported(copied, tmp_path), copied / "tokenizer.json", SAMPLES)
    assert not parity.good
    assert 0 < parity.mismatched < len(SAMPLES)
    worst = parity.mismatches[0]
    assert worst.expected[0] != worst.found[0]
    assert len(parity.mismatches) <= 5


def test_lost_bytes_are_found(copied: Path, tmp_path: Path, tokenizer_json: dict[str, Any]) -> None:
    path = exported(copied, tmp_path)
    cut = copy.deepcopy(tokenizer_json)
    cut["added_tokens"] = [token for token in cut["added_tokens"] if token["content"] != "<article>"]
    write_tokenizer(copied, cut)
    parity = verify_tokenizer(path, copied / "tokenizer.json", ["plain", "an <article>"])
    assert parity.mismatched == 1
    assert parity.mismatches[0].text == "an <article>"


def test_a_template_that_the_file_lacks_is_found(copied: Path, tmp_path: Path) -> None:
    template = (copied / "chat_template.jinja").rename(tmp_path / "template.jinja")
    path = exported(copied, tmp_path)
    template.rename(copied / "chat_template.jinja")
    parity = verify_tokenizer(path, copied / "tokenizer.json", ["plain"])
    assert parity.mismatched == 3 and all(mismatch.found == [] for mismatch in parity.mismatches)


def trimmed(data: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    """The tokenizer with only what `texts` use, all bytes, and every token that a kept one is merged from."""
    tokenizer = Tokenizer.from_str(json.dumps(data))
    used = {token for text in texts for token in tokenizer.encode(text).tokens}
    vocabulary, merges = data["model"]["vocab"], [tuple(pair) for pair in data["model"]["merges"]]
    special = [token["content"] for token in data["added_tokens"]]
    for left, right in reversed(merges):
        if left + right in used:
            used |= {left, right}
    kept = [text for text in sorted(vocabulary, key=vocabulary.__getitem__) if text in used or len(text) == 1]
    kept = [*special, *(text for text in kept if text not in special)]
    result = copy.deepcopy(data)
    result["model"]["vocab"] = {text: index for index, text in enumerate(kept)}
    result["model"]["merges"] = [list(pair) for pair in merges if {*pair, "".join(pair)} <= set(kept)]
    for token in result["added_tokens"]:
        token["id"] = kept.index(token["content"])
    return result


def test_trimmed_vocabulary_has_parity(copied: Path, tmp_path: Path, tokenizer_json: dict[str, Any]) -> None:
    from safetensors.numpy import load_file, save_file

    data = trimmed(tokenizer_json, TEXTS[:1])
    size = len(data["model"]["vocab"])
    assert 260 < size < 390
    write_tokenizer(copied, data)
    edit_config(copied, vocab_size=size, bos_token_id=1, eos_token_id=2)
    weights = load_file(copied / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:size].copy()
    save_file(weights, copied / "model.safetensors")
    parity = verify_tokenizer(exported(copied, tmp_path), copied / "tokenizer.json", SAMPLES)
    assert parity.good, parity.mismatches
    assert parity.unspellable_bytes == []


def test_bytes_without_a_symbol_are_reported(
    copied: Path, tmp_path: Path, tokenizer_json: dict[str, Any]
) -> None:
    data = copy.deepcopy(tokenizer_json)
    vocabulary = data["model"]["vocab"]
    kept = sorted(vocabulary.keys() - {chr(256 + 4)}, key=vocabulary.__getitem__)  # byte 4
    data["model"]["vocab"] = {text: index for index, text in enumerate(kept)}
    write_tokenizer(copied, data)
    parity = verify_tokenizer(exported(copied, tmp_path), copied / "tokenizer.json", ["a\u0004b", *SAMPLES])
    assert parity.good
    assert parity.unspellable_bytes == [4]


def test_quantization_error_is_seen(equal: Checkpoint, tmp_path: Path) -> None:
    path, reference = exported(equal.path, tmp_path), tmp_path / "reference.safetensors"
    write_reference(reference, equal, ROWS)
    quantize(path, tmp_path / "q4_0.gguf", "q4_0", threads=1)
    dense, coarse = (verify_logits(file, reference, 1) for file in (path, tmp_path / "q4_0.gguf"))
    assert coarse.kl_mean > 10 * dense.kl_mean
    assert coarse.kl_max >= coarse.kl_mean
    assert not coarse.within(threshold_of("f16"))


def test_refuses_bad_references(equal: Checkpoint, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path, reference = exported(equal.path, tmp_path), tmp_path / "reference.safetensors"
    tokens = np.zeros((1, 4), np.int32)
    for logits, message in (
        (np.zeros((1, 4, 399), np.float32), "has 400 tokens, the checkpoint 399"),
        (np.zeros((1, 3, 400), np.float32), "do not belong"),
    ):
        save_file({"tokens": tokens, "logits": logits}, reference)
        with pytest.raises(EdgeError, match=message):
            verify_logits(path, reference, 1)
    reference.write_bytes(reference.read_bytes()[:-7])
    with pytest.raises(EdgeError, match="not a whole reference file"):
        verify_logits(path, reference, 1)


def test_a_special_token_that_became_text_is_found(
    copied: Path, tmp_path: Path, tokenizer_json: dict[str, Any]
) -> None:
    lost = copy.deepcopy(tokenizer_json)
    lost["added_tokens"] = [token for token in lost["added_tokens"] if token["content"] != START]
    write_tokenizer(copied, lost)
    path = exported(copied, tmp_path)
    write_tokenizer(copied, tokenizer_json)
    parity = verify_tokenizer(path, copied / "tokenizer.json", ["plain text"])
    assert parity.mismatched == 4  # its own text and three prompts
    assert parity.mismatches[0].specials
    assert START in parity.mismatches[0].text


def test_tokens_that_end_answers_in_one_of_both_only_are_named(copied: Path, tmp_path: Path) -> None:
    path = exported(copied, tmp_path)
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 398]}))
    parity = verify_tokenizer(path, copied / "tokenizer.json", ["plain text"])
    assert parity.ends == ["<article>"]
    assert parity.reasons == ["'<article>' end answers in one of both only"]
    assert verify_tokenizer(exported(copied, tmp_path), copied / "tokenizer.json", ["plain text"]).good
