from __future__ import annotations

from typing import Any

import pytest

from minigpt_edge_runtime.bench.profiles import PROFILES, Changes, profile_settings
from minigpt_edge_runtime.errors import EdgeError, UsageError


def test_the_small_device_has_one_thread_and_both_measure_the_same() -> None:
    cpu, laptop = (profile_settings(profile) for profile in PROFILES)
    assert cpu.threads == 1 and laptop.threads >= 1
    assert (cpu.prompt_lengths, cpu.depths) == (laptop.prompt_lengths, laptop.depths)
    assert cpu.context_length == cpu.depths[-1] + cpu.generate_tokens


def test_other_threads_make_a_custom_profile_other_lengths_do_not() -> None:
    assert profile_settings("cpu", Changes(threads=1, prompt_lengths=[9, 4, 9])).profile == "cpu"
    assert profile_settings("cpu", Changes(prompt_lengths=[9, 4, 9])).prompt_lengths == (4, 9)
    assert profile_settings("cpu", Changes(threads=3)).profile == "custom"


@pytest.mark.parametrize("context", [1, 2, 40, 64, 100, 300, 512, 575])
def test_a_short_context_gets_what_fits(context: int) -> None:
    settings = profile_settings("cpu", context=context)
    assert settings.context_length <= context
    assert settings.prompt_lengths[-1] == min(512, context) and settings.depths[0] == 0
    assert profile_settings("cpu", Changes(generate_tokens=1), context).context_length <= context


def test_a_long_context_changes_nothing() -> None:
    assert profile_settings("cpu", context=576) == profile_settings("cpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt_lengths": [8, 101]}, "prompt of 101 tokens does not fit into the model's context of 100"),
        ({"depths": [0, 100]}, "1 tokens at depth 100 do not fit"),
        ({"depths": [90], "generate_tokens": 20}, "20 tokens at depth 90 do not fit"),
        ({"generate_tokens": 101}, "101 tokens at depth 0 do not fit"),
    ],
)
def test_what_is_asked_for_is_not_cut(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgeError, match=message) as caught:
        profile_settings("cpu", Changes(**asked), 100)
    assert caught.value.hint


@pytest.mark.parametrize(
    "asked",
    [{"threads": 0}, {"prompt_lengths": [0]}, {"depths": [-1]}, {"generate_tokens": 0}, {"repetitions": 0}],
)
def test_numbers_that_mean_nothing_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="it must be"):
        profile_settings("laptop", Changes(**asked))
    with pytest.raises(UsageError, match="no profile 'phone'"):
        profile_settings("phone")
