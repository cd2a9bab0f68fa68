"""What bench does: its profiles, and their lengths cut to what a model's context holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace

from minigpt_edge_runtime.cpus import default_laptop_threads
from minigpt_edge_runtime.errors import EdgeError, UsageError

PROFILES = ("cpu", "laptop")


@dataclass(frozen=True)
class Settings:
    """What is measured, with how many threads and how often. Lengths are tokens, in ascending order."""

    threads: int
    prompt_lengths: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = (0, 512)
    generate_tokens: int = 64
    repetitions: int = 5
    profile: str = "custom"

    @property
    def context_length(self) -> int:
        """Tokens the cache must hold."""
        return max(self.prompt_lengths[-1], self.depths[-1] + self.generate_tokens)


@dataclass(frozen=True)
class Changes:
    """What to measure otherwise than a profile says; None is the profile's own."""

    threads: int | None = None
    prompt_lengths: Sequence[int] | None = None
    depths: Sequence[int] | None = None
    generate_tokens: int | None = None
    repetitions: int | None = None


def profile_settings(profile: str, changes: Changes | None = None, context: int | None = None) -> Settings:
    """A profile with some of its settings replaced; what is not, is cut to the model's context.

    Args:
        profile: "cpu" is one thread, the small device; "laptop" a thread for every physical core. Both
            measure the same lengths, so that their reports can be compared.
        context: the longest context the model was made for; None if unknown.

    Raises:
        UsageError: a number is too small, or there is no such profile.
        EdgeError: something asked for does not fit into the model's context.
    """
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}", f"choose {' or '.join(PROFILES)}")
    own_threads = 1 if profile == "cpu" else default_laptop_threads()
    asked = {key: value for key, value in asdict(changes or Changes()).items() if value is not None}
    threads = asked.pop("threads", own_threads)
    for name in {"prompt_lengths", "depths"} & asked.keys():
        asked[name] = _ascending(asked[name])
    settings = replace(Settings(threads, profile=profile if threads == own_threads else "custom"), **asked)
    _check_numbers(settings)
    return settings if context is None else fit(settings, context, set(asked))


def _ascending(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


def _check_numbers(settings: Settings) -> None:
    rules = [
        ("threads", settings.threads, 1),
        ("the shortest prompt", settings.prompt_lengths[0], 1),
        ("the smallest depth", settings.depths[0], 0),
        ("generate tokens", settings.generate_tokens, 1),
        ("repetitions", settings.repetitions, 1),
    ]
    for what, value, least in rules:
        if value < least:
            raise UsageError(f"{what} is {value}, it must be {least} or more")


def fit(settings: Settings, context: int, asked: Collection[str] = ()) -> Settings:
    """`settings` with all that was not asked for cut to `context`; EdgeError if what was does not fit."""
    if "generate_tokens" not in asked:
        deepest = settings.depths[-1] if "depths" in asked else 0
        settings = replace(settings, generate_tokens=max(min(settings.generate_tokens, context - deepest), 1))
    if "prompt_lengths" not in asked:
        settings = replace(settings, prompt_lengths=_cut(settings.prompt_lengths, context))
    if "depths" not in asked:
        room = max(context - settings.generate_tokens, 0)
        settings = replace(settings, depths=_cut(settings.depths, room))
    longest, deepest = settings.prompt_lengths[-1], settings.depths[-1]
    if longest > context:
        raise EdgeError(
            f"a prompt of {longest:,} tokens does not fit into the model's context of {context:,}",
            f"use prompt lengths of at most {context:,}",
        )
    if deepest + settings.generate_tokens > context:
        raise EdgeError(
            f"{settings.generate_tokens:,} tokens at depth {deepest:,} do not fit into the model's context "
            f"of {context:,}",
            "use smaller depths, or generate fewer tokens",
        )
    return settings


def _cut(lengths: Sequence[int], most: int) -> tuple[int, ...]:
    return _ascending([min(length, most) for length in lengths])
