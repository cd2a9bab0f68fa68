from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from vocabulary_helpers import (
    ARTICLE,
    BYTES,
    END,
    SCRIPTS,
    START,
    STOP,
    TRAINING,
    decode,
    encode,
    ids_of,
    mixtures,
    must_stay,
    train,
)

from minigpt_edge.prune.vocabulary.choose import (
    choose_tokens,
    close_tokens,
    count_tokens,
    open_tokenizer,
    read_vocabulary,
    unreachable_tokens,
)
from minigpt_edge.prune.vocabulary.trim import config_token_ids, remap_config, trim_json, trim_tokenizer
from minigpt_edge_runtime.errors import EdgeError


def write_directory(directory: Path, data: dict[str, Any]) -> None:
    """A tokenizer as a checkpoint directory holds it, with files that a trimmed one must not have."""
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": START,
        "eos_token": STOP,
        "unk_token": END,
        "added_tokens_decoder": {
            str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in data["added_tokens"]
        },
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps({"bos_token": START, "eos_token": STOP}))
    (directory / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<|im_end|>")
    (directory / "vocab.json").write_text(json.dumps(data["model"]["vocab"]))
    (directory / "merges.txt").write_text("\n".join(" ".join(m) for m in data["model"]["merges"]))


@pytest.mark.whole
@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("merges_as_text", [False, True])
def test_any_closed_choice_is_consistent(ignore_merges: bool, merges_as_text: bool) -> None:
    """Random kept sets: nothing becomes unreachable, no byte is lost, and other text keeps its tokens."""
    data = train(ignore_merges)
    if merges_as_text:
        data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    base, vocabulary, chance = open_tokenizer(data), read_vocabulary(data), random.Random(1)
    texts, everything, same = mixtures(60, seed=2) + SCRIPTS, sorted(ids_of(data).values()), 0
    for share in (0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 1) * 3:
        drawn = {token for token in everything if chance.random() < share}
        kept = close_tokens(vocabulary, drawn | must_stay(data))
        trimmed, old_to_new = trim_json(data, kept)
        child = open_tokenizer(trimmed)
        assert child.get_vocab_size() == len(kept)
        assert all(isinstance(merge, str) == merges_as_text for merge in trimmed["model"]["merges"])
        for text in texts:
            ids = encode(base, text)
            assert decode(child, encode(child, text)) == decode(base, ids) == text
            if (old_to_new[ids] >= 0).all():
                same += 1
                assert encode(child, text) == old_to_new[ids].tolist()
        for new, old in enumerate(kept):
            assert old_to_new[old] == new
            assert child.id_to_token(new) == base.id_to_token(old)
    assert same > 200


def test_the_heaviest_trim_loses_no_byte(data: dict[str, Any]) -> None:
    child = open_tokenizer(trim_json(data, sorted(must_stay(data)))[0])
    for text in [*SCRIPTS, *mixtures(100, seed=3)]:
        assert decode(child, encode(child, text)) == text


def test_tokens_that_were_unreachable_may_stay_so(data: dict[str, Any]) -> None:
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) != "Ġsoftware"]
    everything = sorted(ids_of(data).values())
    trimmed, _ = trim_json(data, everything)
    assert unreachable_tokens(trimmed) == ["Ġsoftware"]
    counts = np.zeros(len(everything), dtype=np.int64)
    assert set(everything) - set(choose_tokens(data, counts, size=len(everything) - 1)) == {
        ids_of(data)["Ġsoftware"]
    }


def test_a_broken_choice_is_refused(data: dict[str, Any]) -> None:
    vocabulary, ids = read_vocabulary(data), ids_of(data)
    everything = sorted(ids.values())
    part = next(p for p in vocabulary.parts[ids["Ġsoftware"]] if p not in vocabulary.byte_symbols)
    without = [token for token in everything if token != part]
    with pytest.raises(EdgeError, match="can't be built from the kept ones"):
        trim_json(data, without)
    for text in ("Ā", "a", END, ARTICLE):
        with pytest.raises(EdgeError, match="1 tokens that must be kept are not"):
            trim_json(data, [token for token in everything if token != ids[text]])
    for wrong in (everything[::-1], [*everything, 5000], [-1, *everything], [0, *everything]):
        with pytest.raises(EdgeError, match="not ascending ids of the vocabulary"):
            trim_json(data, wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}},
        {
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "first",
                "split": True,
            }
        },
    ],
)
def test_other_kinds_of_tokenizers_are_refused(data: dict[str, Any], change: dict[str, Any]) -> None:
    for use in (read_vocabulary, unreachable_tokens, lambda d: trim_json(d, [0])):
        with pytest.raises(EdgeError, match="not a plain byte-level BPE"):
            use({**data, **change})


def test_post_processors_get_new_ids(data: dict[str, Any]) -> None:
    ids = ids_of(data)
    kept = choose_tokens(data, np.zeros(len(ids), dtype=np.int64))
    around = [ids[ARTICLE], ids["a"], ids[STOP]]
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": ARTICLE, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": STOP, "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in (ARTICLE, STOP)
        },
    }
    pair = {"cls": [ARTICLE, ids[ARTICLE]], "sep": [STOP, ids[STOP]]}
    roberta = {"type": "RobertaProcessing", **pair, "trim_offsets": True, "add_prefix_space": False}
    sequence = {"type": "Sequence", "processors": [{"type": "ByteLevel", **BYTES}, template]}
    for processor in (template, roberta, {"type": "BertProcessing", **pair}, sequence):
        data["post_processor"] = processor
        assert open_tokenizer(data).encode("a").ids == around
        trimmed, old_to_new = trim_json(data, kept)
        assert open_tokenizer(trimmed).encode("a").ids == old_to_new[around].tolist()
    assert old_to_new[ids[ARTICLE]] != ids[ARTICLE]


def test_directory_loads_in_transformers(data: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    kept = choose_tokens(data, count_tokens(open_tokenizer(data), TRAINING))
    # a way of splitting that no class of transformers would choose by itself
    halves = {
        "type": "Split",
        "pattern": {"Regex": "[a-m]+|[^a-m]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    steps = [halves, {"type": "ByteLevel", **BYTES, "use_regex": False}]
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    source, out = tmp_path / "base", tmp_path / "new" / "trimmed"
    source.mkdir()
    write_directory(source, data)
    old_to_new = trim_tokenizer(source, out, kept)
    assert {p.name for p in out.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
    }  # fmt: skip
    assert (out / "chat_template.jinja").read_bytes() == (source / "chat_template.jinja").read_bytes()
    settings = json.loads((out / "tokenizer_config.json").read_text())
    article = str(old_to_new[ids_of(data)[ARTICLE]])
    assert settings["added_tokens_decoder"][article]["content"] == ARTICLE
    loaded = AutoTokenizer.from_pretrained(out)
    child = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert len(loaded) == len(kept)
    for text in [*SCRIPTS, *TRAINING, f"{START}{ARTICLE} copy 12"]:
        assert loaded(text, add_special_tokens=False)["input_ids"] == encode(child, text)
    assert (loaded.bos_token_id, loaded.eos_token_id) == (child.token_to_id(START), child.token_to_id(STOP))


def test_configs_get_new_ids() -> None:
    old_to_new = np.array([0, -1, 1, 2, -1, 3], dtype=np.int64)
    config = {
        "vocab_size": 8,
        "bos_token_id": 2,
        "eos_token_id": [3, 5],
        "pad_token_id": -1,
        "unk_token_id": None,
        "hidden_size": 4,
        "text_config": {"decoder_start_token_id": 5},
    }
    generation = {
        "bos_token_id": 2,
        "eos_token_id": [3, 5],
        "suppress_tokens": [1, 2, 4],
        "bad_words_ids": [[2, 3], [2, 4]],
        "sequence_bias": [[[5], -1.0], [[1], 2.0]],
        "forced_decoder_ids": [[1, 5], [2, None]],
        "forced_eos_token_id": 3,
        "max_length": 5,
    }
    before = copy.deepcopy((config, generation))
    new_config, new_generation = remap_config(config, generation, old_to_new)
    assert (config, generation) == before
    assert new_config == {
        "vocab_size": 4,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": -1,
        "unk_token_id": None,
        "hidden_size": 4,
        "text_config": {"decoder_start_token_id": 3},
    }
    assert new_generation == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "suppress_tokens": [1],
        "bad_words_ids": [[1, 2]],
        "sequence_bias": [[[3], -1.0]],
        "forced_decoder_ids": [[1, 3], [2, None]],
        "forced_eos_token_id": 2,
        "max_length": 5,
    }
    assert config_token_ids(config, generation) == {2, 3, 5}


@pytest.mark.parametrize("index", [1, 6])
def test_a_config_that_needs_a_dropped_token_is_refused(index: int) -> None:
    old_to_new = np.array([0, -1, 1], dtype=np.int64)
    with pytest.raises(EdgeError, match=f"token id {index}, which is not kept"):
        remap_config({"eos_token_id": [0, index]}, {}, old_to_new)
