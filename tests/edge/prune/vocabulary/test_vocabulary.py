from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vocabulary_helpers import (
    CORPUS,
    TRAINING,
    decode,
    encode,
    ids_of,
    mixtures,
    must_stay,
    train,
)

from minigpt_edge.prune.vocabulary.choose import (
    FURTHER,
    choose_tokens,
    close_tokens,
    count_tokens,
    open_tokenizer,
    read_vocabulary,
    removal_order,
    required_tokens,
    unreachable_tokens,
)
from minigpt_edge.prune.vocabulary.trim import trim_json
from minigpt_edge_runtime.errors import EdgeError


def test_counts(data: dict[str, Any]) -> None:
    tokenizer = open_tokenizer(data)
    texts = mixtures(150)
    expected = np.zeros(len(ids_of(data)), dtype=np.int64)
    for text in texts:
        for token in encode(tokenizer, text):
            expected[token] += 1
    counts = count_tokens(tokenizer, iter(texts))
    assert counts.dtype == np.int64
    assert counts.tolist() == expected.tolist()


def test_a_truncating_tokenizer_counts_and_trims_whole_texts(data: dict[str, Any]) -> None:
    data["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert count_tokens(open_tokenizer(data), CORPUS).sum() > 2 * len(CORPUS)


def test_min_count_one_encodes_the_corpus_as_before(data: dict[str, Any]) -> None:
    base = open_tokenizer(data)
    kept = choose_tokens(data, count_tokens(base, CORPUS))
    assert len(kept) < 0.75 * len(ids_of(data))
    trimmed, old_to_new = trim_json(data, kept)
    child = open_tokenizer(trimmed)
    for text in CORPUS:
        assert encode(child, text) == old_to_new[encode(base, text)].tolist()


def test_min_count_keeps_used_tokens_and_those_they_are_built_from(data: dict[str, Any]) -> None:
    vocabulary, base, fixed = read_vocabulary(data), open_tokenizer(data), must_stay(data)
    counts = count_tokens(base, TRAINING)
    smaller: list[int] = sorted(vocabulary.ids.values())
    for min_count in (0, 1, 2, 3, 6):
        kept = choose_tokens(data, counts, min_count=min_count)
        assert {i for i, count in enumerate(counts) if count >= min_count} <= set(kept) <= set(smaller)
        assert close_tokens(vocabulary, kept) == kept
        used = count_tokens(open_tokenizer(trim_json(data, kept)[0]), TRAINING)
        parts = {part for token in kept for part in vocabulary.parts.get(token, ())}
        leaves = [i for i, t in enumerate(kept) if t not in parts | fixed]
        assert all(used[i] >= min_count for i in leaves), "a token that nothing needs is used too rarely"
        smaller = kept
    kept = choose_tokens(data, counts, min_count=10**6)
    assert fixed < set(kept) < set(smaller)
    assert len(trim_json(data, kept)[0]["model"]["merges"]) == 1


def test_what_a_dropped_token_counted_goes_to_its_parts(data: dict[str, Any]) -> None:
    vocabulary, counts = read_vocabulary(data), np.zeros(len(ids_of(data)), dtype=np.int64)
    users: dict[int, list[int]] = {}
    fixed = must_stay(data)
    for token, pair in vocabulary.parts.items():
        for part in set(pair) - fixed:
            users.setdefault(part, []).append(token)
    part, children = max(
        ((p, c) for p, c in users.items() if not any(child in users for child in c)), key=lambda x: len(x[1])
    )
    assert len(children) >= 2
    counts[children] = 2
    assert part in choose_tokens(data, counts, min_count=2 * len(children))
    assert part not in choose_tokens(data, counts, min_count=2 * len(children) + 1)
    assert not set(children) & set(choose_tokens(data, counts, min_count=3))


@pytest.mark.parametrize("size", [261, 262, 300, 413, 580])
def test_exact_sizes(data: dict[str, Any], size: int) -> None:
    counts = count_tokens(open_tokenizer(data), CORPUS)
    kept = choose_tokens(data, counts, size=size)
    assert len(kept) == size
    assert close_tokens(read_vocabulary(data), kept) == kept
    assert must_stay(data) <= set(kept)
    larger = choose_tokens(data, counts, size=size + 7)
    assert set(kept) <= set(larger)


def test_larger_vocabularies_encode_the_corpus_in_fewer_tokens(data: dict[str, Any]) -> None:
    counts = count_tokens(open_tokenizer(data), TRAINING)
    lengths = []
    for size in (261, 300, 400, 500, 593):
        child = open_tokenizer(trim_json(data, choose_tokens(data, counts, size=size))[0])
        lengths.append(sum(len(encode(child, text)) for text in TRAINING))
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 2 * lengths[-1]


def test_sizes_that_can_not_be(data: dict[str, Any]) -> None:
    counts = np.zeros(len(ids_of(data)), dtype=np.int64)
    with pytest.raises(EdgeError, match=r"260 tokens can't be kept: 261 must be kept \(256 byte.* 4 special"):
        choose_tokens(data, counts, size=260)
    with pytest.raises(EdgeError, match=f"there are {len(counts)}"):
        choose_tokens(data, counts, size=len(counts) + 1)
    with pytest.raises(EdgeError, match="counts for 3 tokens"):
        choose_tokens(data, [1, 2, 3])
    with pytest.raises(EdgeError, match="no token with id 9999"):
        choose_tokens(data, counts, always=[9999])
    with pytest.raises(EdgeError, match="must be kept"):
        choose_tokens(data, counts, size=261, keep=["sublicense"])


def test_terms_go_on_being_encoded_to_the_same_tokens(data: dict[str, Any]) -> None:
    counts = np.zeros(len(ids_of(data)), dtype=np.int64)
    terms = ["sublicense", "Recht der Schweiz", "право", "zebra", ""]
    base = open_tokenizer(data)
    for chosen in ({"size": 320}, {"min_count": 1}):
        trimmed, old_to_new = trim_json(data, choose_tokens(data, counts, keep=terms, **chosen))  # type: ignore[arg-type]
        child = open_tokenizer(trimmed)
        for term in terms:
            for text in (term, f" {term}"):
                assert encode(child, text) == old_to_new[encode(base, text)].tolist()
    without, _ = trim_json(data, choose_tokens(data, counts))
    assert len(encode(open_tokenizer(without), "sublicense")) > len(encode(base, "sublicense"))


def test_the_smallest_size_is_what_must_stay(data: dict[str, Any]) -> None:
    counts = np.zeros(len(ids_of(data)), dtype=np.int64)
    smallest = choose_tokens(data, counts, keep=["sublicense"])
    assert choose_tokens(data, counts, keep=["sublicense"], size=len(smallest)) == smallest
    with pytest.raises(EdgeError, match=f"{len(smallest)} must be kept"):
        choose_tokens(data, counts, keep=["sublicense"], size=len(smallest) - 1)


def test_tokens_that_always_stay(data: dict[str, Any]) -> None:
    token = ids_of(data)["Ġsoftware"]
    counts = np.zeros(len(ids_of(data)), dtype=np.int64)
    assert token not in choose_tokens(data, counts)
    kept = choose_tokens(data, counts, always=[token])
    assert kept == sorted(must_stay(data) | set(close_tokens(read_vocabulary(data), [token])))


def test_unreachable_tokens_are_found(data: dict[str, Any]) -> None:
    assert unreachable_tokens(data) == []
    ids = ids_of(data)
    left = next(
        text for text, index in ids.items() if index == read_vocabulary(data).parts[ids["Ġsoftware"]][0]
    )
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) != left]
    assert "Ġsoftware" in unreachable_tokens(data)


def test_whole_pieces_that_no_merge_builds_count_for_what_they_become() -> None:
    data = train(ignore_merges=True)
    data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) != "Ġsoftware"]
    ids, base = ids_of(data), open_tokenizer(data)
    whole = ids["Ġsoftware"]
    assert encode(base, " software") == [whole]
    pieces = set(read_vocabulary(data).pieces[whole])
    inherits = next(piece for piece in pieces if piece not in must_stay(data))
    counts = np.zeros(len(ids), dtype=np.int64)
    counts[whole] = 2
    assert whole in choose_tokens(data, counts, min_count=2)
    counts[inherits] = 3
    kept = choose_tokens(data, counts, min_count=4)
    assert whole not in kept
    assert inherits in kept
    assert inherits not in choose_tokens(data, counts, min_count=6)
    smallest = open_tokenizer(trim_json(data, choose_tokens(data, counts, size=261))[0])
    assert decode(smallest, encode(smallest, " software")) == " software"


def test_a_token_that_text_never_holds_can_go(data: dict[str, Any]) -> None:
    data["added_tokens"][-1]["id"] += 1
    data["model"]["vocab"]["€"] = len(data["model"]["vocab"])  # not a byte symbol, so never met
    ids = ids_of(data)
    counts = np.zeros(len(ids), dtype=np.int64)
    counts[ids["€"]] = 1
    assert ids["€"] not in choose_tokens(data, counts, size=261)


def test_a_damaged_tokenizer_is_refused(data: dict[str, Any]) -> None:
    data["model"]["merges"].append(["q", "z"])
    with pytest.raises(EdgeError, match="damaged"):
        read_vocabulary(data)


def test_text_becomes_as_much_longer_as_the_order_of_removal_says(data: dict[str, Any]) -> None:
    vocabulary, base = read_vocabulary(data), open_tokenizer(data)
    counts = count_tokens(base, TRAINING)
    required = required_tokens(vocabulary, base, ["sublicense"], [])
    order = removal_order(vocabulary, counts / counts.sum(), required)
    assert set(order.kept) >= required and len(order.kept) + len(order.removed) == len(counts)
    for size in (300, 400, 500):
        kept = order.tokens(size)
        assert len(kept) == size and close_tokens(vocabulary, kept) == list(kept)
        child, removed = open_tokenizer(trim_json(data, kept)[0]), len(counts) - size
        longer = sum(len(encode(child, text)) for text in TRAINING) / counts.sum() - 1
        assert longer == pytest.approx(order.longer[:removed].sum(), rel=0.05)
        splits = order.costs[:removed].sum()
        assert FURTHER * longer <= splits * 1.05 and splits <= longer * 1.05


def test_with_nothing_inherited_the_order_is_that_of_the_counts(data: dict[str, Any]) -> None:
    """All that occurs are tokens of which nothing else is built: dropped by their counts, rarest first."""
    vocabulary = read_vocabulary(data)
    parts = {part for pair in vocabulary.parts.values() for part in pair}
    leaves = sorted(vocabulary.parts.keys() - parts - must_stay(data))
    expected = np.zeros(len(ids_of(data)))
    expected[leaves] = np.random.Generator(np.random.PCG64(0)).permutation(len(leaves)) + 1
    order = removal_order(vocabulary, expected, must_stay(data))
    found = [token for token in order.removed.tolist() if token in set(leaves)]
    assert found == sorted(leaves, key=expected.__getitem__)
