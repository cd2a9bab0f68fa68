"""The sampler against a plain computation and against llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest

from minigpt_edge_runtime.errors import EdgeError, UsageError
from minigpt_edge_runtime.generate.sampling import Sampler, Sampling

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
CASES: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10_000},
    {"top_p": 0.5},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.3},
    {"temperature": 3.0, "top_p": 0.9},
    {"repeat_penalty": 1.3},
    {"repeat_penalty": 0.5, "top_k": 20},
    {"repeat_penalty": 1.1, "repeat_last": 3, "top_k": 30, "top_p": 0.8, "min_p": 0.1, "temperature": 0.7},
    {"top_k": 50, "top_p": 0.95, "min_p": 0.05, "temperature": 1.5},
    {"frequency_penalty": 0.7, "top_k": 30},
    {"presence_penalty": -1.5, "frequency_penalty": 2.0, "repeat_penalty": 1.2, "top_k": 30},
    {"logit_bias": {3: 100.0, 7: -100.0, 11: 2.5}, "presence_penalty": 1.0, "repeat_penalty": 1.1},
]


def made_logits(seed: int = 0, size: int = 3000) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * 4).astype(np.float32)


def likeliest(logits: np.ndarray, count: int = 30) -> list[int]:
    """Some of the likeliest and unlikeliest tokens, as a text so far."""
    order = np.argsort(-logits)
    return [*order[:count:3].tolist(), *order[-3:].tolist(), int(order[0])]


def accepting(settings: dict[str, Any], text: list[int]) -> Sampler:
    sampler = Sampler(Sampling(**{**OFF, **settings}))
    for token in text:
        sampler.accept(token)
    return sampler


def plain(logits: np.ndarray, sampling: Sampling, text: list[int]) -> list[tuple[int, float]]:
    """Candidates and probabilities, written down as the definitions read."""
    values = [float(value) for value in logits]
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    if sampling.repeat_last:
        for token in set(text[-sampling.repeat_last :]):
            penalty = sampling.repeat_penalty
            values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
    for token in set(text):
        values[token] -= text.count(token) * sampling.frequency_penalty + sampling.presence_penalty
    kept = sorted(range(len(values)), key=lambda token: -values[token])
    if sampling.top_k:
        kept = kept[: sampling.top_k]

    def softmax(tokens: list[int], temperature: float = 1.0) -> list[float]:
        scaled = [math.exp((values[token] - values[tokens[0]]) / temperature) for token in tokens]
        return [value / sum(scaled) for value in scaled]

    if sampling.top_p < 1:
        total, count = 0.0, 0
        for probability in softmax(kept):
            total, count = total + probability, count + 1
            if total >= sampling.top_p:
                break
        kept = kept[:count]
    probabilities = softmax(kept)
    pairs = zip(kept, probabilities, strict=True)
    kept = [token for token, probability in pairs if probability >= sampling.min_p * probabilities[0]]
    return list(zip(kept, softmax(kept, sampling.temperature), strict=True))


def llama_cpps(logits: np.ndarray, sampling: Sampling, text: list[int]) -> list[tuple[int, float]]:
    """The same from llama.cpp's samplers."""
    import llama_cpp as lib

    biases = (lib.llama_logit_bias * len(sampling.logit_bias))()
    for at, (token, bias) in enumerate(sampling.logit_bias.items()):
        biases[at].token, biases[at].bias = token, bias
    frequency, presence = sampling.frequency_penalty, sampling.presence_penalty
    chain = [
        lib.llama_sampler_init_logit_bias(len(logits), len(biases), biases),
        lib.llama_sampler_init_penalties(
            len(logits), sampling.repeat_last, sampling.repeat_penalty, frequency, presence
        ),
        lib.llama_sampler_init_top_k(sampling.top_k),
        lib.llama_sampler_init_top_p(sampling.top_p, 1),
        lib.llama_sampler_init_min_p(sampling.min_p, 1),
        lib.llama_sampler_init_temp(sampling.temperature),
        lib.llama_sampler_init_dist(1),
    ]
    data = (lib.llama_token_data * len(logits))()
    for token, value in enumerate(logits):
        data[token].id, data[token].logit = token, float(value)
    array = lib.llama_token_data_array(ctypes.cast(data, lib.llama_token_data_p), len(logits), -1, False)
    for sampler in chain:
        for token in text:
            lib.llama_sampler_accept(sampler, token)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        lib.llama_sampler_free(sampler)
    found = [(array.data[i].id, array.data[i].p) for i in range(array.size)]
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.whole
@pytest.mark.parametrize("settings", CASES, ids=str)
@pytest.mark.parametrize("oracle", [plain, llama_cpps])
def test_candidates_and_probabilities(settings: dict[str, Any], oracle: Any) -> None:
    for seed in range(3):
        logits = made_logits(seed)
        text = likeliest(logits)
        expected = oracle(logits, Sampling(**{**OFF, **settings}), text)
        ids, probabilities = accepting(settings, text).candidates(logits)
        assert set(ids.tolist()) == {token for token, _ in expected}
        np.testing.assert_allclose(probabilities, [p for _, p in expected], rtol=1e-4, atol=1e-30)
        np.testing.assert_array_equal(
            logits, made_logits(seed)
        )  # they are the engine's, and stay as they were


def test_a_filter_that_is_on_takes_candidates_away() -> None:
    logits = made_logits()
    counts = {
        name: len(accepting({name: value}, []).candidates(logits)[0]) for name, value in FILTERS.items()
    }
    assert len(logits) == 3000 and counts["top_k"] == 7
    assert 1 < counts["top_p"] < 3000 and 1 < counts["min_p"] < 3000


FILTERS: dict[str, Any] = {"top_k": 7, "top_p": 0.9, "min_p": 0.01}


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = accepting({"seed": 4}, [])
    drawn = np.bincount([sampler.sample(logits) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.03)


def test_the_same_seed_and_logits_give_the_same_tokens_everywhere() -> None:
    def sampled(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed, temperature=1.0))
        tokens = []
        for step in range(12):
            logits = np.arange(200) * 7919 * (step + 1) % 101 / np.float32(10)
            tokens.append(sampler.sample(logits.astype(np.float32)))
            sampler.accept(tokens[-1])
        return tokens

    assert sampled(7) == sampled(7) != sampled(8)
    assert sampled(7) == [54, 22, 50, 24, 66, 103, 19, 149, 185, 83, 174, 109]  # written down on x86-64


def test_of_equal_logits_the_smaller_ids_are_kept() -> None:
    logits = np.zeros(500, np.float32)
    logits[[30, 400]] = 1
    ids, _ = accepting({"top_k": 5}, []).candidates(logits)
    assert ids.tolist() == [30, 400, 0, 1, 2]
    assert accepting({"temperature": 0.0}, []).sample(logits) == 30


def test_greedy_is_the_likeliest_after_the_penalty() -> None:
    logits = made_logits()
    order = np.argsort(-logits)
    assert accepting({"temperature": 0.0}, [int(order[0])]).sample(logits) == order[0]
    penalized = accepting({"temperature": 0.0, "repeat_penalty": 1e6}, [int(order[0])])
    assert penalized.sample(logits) == order[1]
    forgotten = accepting(
        {"temperature": 0.0, "repeat_penalty": 1e6, "repeat_last": 2}, [int(order[0]), 5, 6]
    )
    assert forgotten.sample(logits) == order[0]


def test_openais_penalties_count_the_answer_alone() -> None:
    logits = made_logits()
    first = int(logits.argmax())
    settings = Sampling(**{**OFF, "temperature": 0.0, "presence_penalty": 2.0, "frequency_penalty": 2.0})
    sampler = Sampler(settings)
    sampler.read([first] * 20)
    assert sampler.sample(logits) == first
    for _ in range(20):
        sampler.accept(first)
    assert sampler.sample(logits) == np.argsort(-logits)[1]


def test_masked_logits_are_never_drawn_and_nan_is_an_error() -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[3, 8]] = 0
    sampler = accepting({"temperature": 5.0}, [])
    assert {sampler.sample(logits) for _ in range(50)} == {3, 8}
    logits[4] = np.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(EdgeError, match="not numbers"):
            accepting({"temperature": temperature}, []).sample(logits)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"min_p": 2},
        {"top_k": -1},
        {"repeat_penalty": 0},
        {"repeat_last": -1},
        {"seed": -1},
        {"frequency_penalty": 2.1},
        {"presence_penalty": math.nan},
        {"logit_bias": {5: math.inf}},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting))):
        Sampling(**setting)
