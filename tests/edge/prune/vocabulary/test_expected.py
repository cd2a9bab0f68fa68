"""Expected occurrences against text that was held out, counted exactly."""

from __future__ import annotations

import numpy as np
import pytest

from minigpt_edge.prune.vocabulary.expected import expected_occurrences, find_occurrences

Made = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
TYPES, BURSTY, MISSING = 3000, 400, 50  # tokens of Zipf's law, tokens that fill one document, none


def documents(count: int, seed: int) -> list[np.ndarray]:
    """Documents of token ids: Zipf's law, and in some documents a token of their own again and again."""
    chance = np.random.Generator(np.random.PCG64(seed))
    share = 1 / np.arange(1, TYPES + 1)
    share /= share.sum()
    made = []
    for _ in range(count):
        parts = [chance.choice(TYPES, 200, p=share)]
        if chance.random() < 0.2:
            parts.append(np.full(chance.integers(10, 40), TYPES + chance.integers(BURSTY)))
        made.append(np.concatenate(parts).astype(np.int64))
    return made


@pytest.fixture(scope="module")
def made() -> Made:
    """Expected occurrences in the held-out documents, those counted there and in training, and documents."""
    rows, held = TYPES + BURSTY + MISSING, np.concatenate(documents(2000, seed=1))
    found = find_occurrences(documents(400, seed=0), rows)
    expected = expected_occurrences(found, range(TYPES + BURSTY)) * len(held)
    spread = np.bincount(found.token, minlength=rows)
    return expected, np.bincount(held, minlength=rows), found.counts, spread


@pytest.mark.parametrize("low, high", [(0, 0), (1, 1), (2, 2), (3, 4), (5, 9), (10, 10**6)])
def test_tokens_that_occur_alike_occur_as_often_as_expected(made: Made, low: int, high: int) -> None:
    expected, held, _, spread = made
    alike = (spread >= low) & (spread <= high)
    assert expected[alike].sum() == pytest.approx(held[alike].sum(), rel=0.25)


def test_one_document_full_of_a_token_says_little(made: Made) -> None:
    expected, held, counts, spread = made
    bursty = (spread == 1) & (counts >= 10)
    assert bursty.sum() > 50
    by_count = counts[bursty].sum() / counts.sum() * held.sum()
    assert by_count > 1.5 * held[bursty].sum()
    assert expected[bursty].sum() == pytest.approx(held[bursty].sum(), rel=0.25)


def test_more_documents_are_never_expected_to_mean_less(made: Made) -> None:
    expected, _, counts, spread = made
    once = [expected[(spread == n) & (counts == n)] for n in range(1, 10)]
    means = [float(values.mean()) for values in once if len(values)]
    assert means == sorted(means)
    assert not expected[-MISSING:].any(), "rows without a token expect nothing"


def test_a_single_document_is_enough() -> None:
    text = np.concatenate(documents(100, seed=2))
    expected = expected_occurrences(find_occurrences([text], TYPES + BURSTY), range(TYPES + BURSTY))
    assert expected.sum() == pytest.approx(1, abs=0.2)
    assert np.isfinite(expected).all() and (expected > 0).all()


def test_a_few_tokens_are_no_error() -> None:
    found = find_occurrences([np.array([3, 3], np.int64)], 5)
    assert np.isfinite(expected_occurrences(found, range(5))).all()
    nothing = find_occurrences([np.zeros(0, np.int64)], 5)
    assert expected_occurrences(nothing, range(5)).tolist() == [0.0] * 5
