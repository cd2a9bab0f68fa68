"""What a build is asked to do: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.dataclasses import dataclass

from minigpt_edge.stages import parallel
from minigpt_edge.stages.checked import Count, problem
from minigpt_edge.stages.device import CPU, check_form
from minigpt_edge_runtime.bench.memory import parse_amount, parse_size
from minigpt_edge_runtime.errors import UsageError

PAPER_SPARSITY = 0.4188  # the best figure of Mini-GPTs (arXiv 2312.12682)
LEAST_TIME = 120  # seconds
_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def parse_count(value: object) -> object:
    """A number such as "60M", "1.1B" or "60000000"; UsageError for other text."""
    if isinstance(value, str):
        return parse_amount(value, _COUNTS, "a number of parameters", "such as 60M, 1.1B or 60000000")
    return value


def parse_time(value: object) -> object:
    """Seconds of a time such as "15m", "8h" or "1h30m"; UsageError for other text, or if it is too short."""
    seconds = value
    if isinstance(value, str):
        found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?", value.strip().lower(), re.ASCII)
        seconds = (
            3600 * int(found[1] or 0) + 60 * int(found[2] or 0) if found and any(found.groups()) else None
        )
        if seconds is None:
            raise UsageError(f"{value!r} is not a time", "such as 15m, 8h or 1h30m")
    if isinstance(seconds, int) and seconds < LEAST_TIME:
        raise UsageError(f"a build takes more than {value!r}", f"give {time_text(LEAST_TIME)} or more")
    return seconds


def time_text(seconds: float) -> str:
    """Whole minutes as `parse_time` takes them, such as "1h30m"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(minutes or not hours)


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, (value,) if isinstance(value, str | Path) else value))


_Size = Annotated[int, BeforeValidator(_bytes)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


@dataclass(frozen=True)
class Recipe:
    """Settings of a build; `prune.settings.check_recipe` checks them against the method.

    Attributes:
        domain: a known domain; or None with `corpus`.
        source: which of the domain's sources, None for its default.
        corpus: files, folders or hub dataset ids.
        text_column: column that holds the text in files of rows or a hub dataset; several names where the
            files differ, each has one of them.
        model: short name, directory, GGUF file or hub id; None for the default.
        adapter: directory or hub id of a LoRA adapter to merge into the model; without a model, into the base
            that it names.
        targets: what to export.
        sparsity: fraction of the parameters to remove, vocabulary counted; of the blocks' weights, for masks.
            At most one of sparsity, max_size, max_params, min_speedup and threshold; none is PAPER_SPARSITY.
        max_size: bytes of the GGUF file at most.
        max_params: parameters at most.
        min_speedup: decoding of the first target over the dense model's at the same type, predicted from
            bytes.
        threshold: mean |activation| up to which neurons and KV groups are removed (method contextual).
        embedding_threshold: share of the training tokens up to which tokens are removed; None for min_count.
        method: how it is decided what is removed.
        reductions: of the method laser, "BLOCK:MATRIX:RHO,…"; None searches on held-out text.
        pattern: "structured" (whole units), "unstructured" or "n:m" (masks), "blocks"; None for the method's.
        widths: "free" (blocks may differ, GGUF architecture deci), "equal" (llama) or "global" (one cut over
            all blocks' scores); None for the method's.
        refit: least-squares refit of what is kept: True, False, None for what the method does.
        plan: a plan.json to follow instead of choosing; neither a sparsity nor what stands in its place is
            given beside it, but max_size may be: it also holds for the file's types.
        min_count: tokens seen less often in the training split are removed from the vocabulary; 0 keeps all.
            None: with widths "free" tokens are removed under one budget with neurons and KV groups, by what
            each costs the loss; elsewhere it is 5.
        keep_tokens: a file of terms, one a line, whose tokens are kept.
        calibration_tokens, recover_tokens: tokens of the training split; with a time they are chosen.
        time: seconds that the whole build may take from an empty cache, downloads left out; None takes as
            long as the numbers of tokens ask for.
        recover: "tokens" (all of recover_tokens), "dense" (stop when validation perplexity is the dense
            model's, at most recover_tokens), or "no".
        lora_rank: rank of LoRA adapters that are trained instead of all weights, and merged; None trains all.
        qat: recovery trains what quantized GGUF files will hold, where that can be done, in place of rounding
            afterwards; None does so where rounding loses too much (gguf-q2_0).
        distill: share of the dense model's predictions in the fine-tuning target at the first step. It would
            be 0 at the last, but ends with the windows that were calibrated on. 0 does without.
        seed, threads: with both equal, results are equal to the byte.
        device: where calibration, pruning, recovery and evaluation compute: "cpu", "auto", or as torch names
            it.
        max_memory: bytes that pruning and recovery may take; None for what is free.
        baseline: also measure the dense model.
        out: the bundle; None for MODEL-DOMAIN in the current directory.
        work: where stages are kept; None for the cache.
        force: replace the files of an earlier bundle in `out`.
        offline: never touch the network.
    """

    domain: str | None = None
    source: str | None = None
    corpus: _Texts = ()
    text_column: _Texts = ()
    model: str | None = None
    adapter: str | None = None
    targets: _Texts = ("gguf-q4",)
    sparsity: Annotated[float, Field(ge=0, lt=1)] | None = None
    max_size: _Size | None = None
    max_params: Annotated[int, BeforeValidator(parse_count)] | None = None
    min_speedup: Annotated[float, Field(ge=1)] | None = None
    threshold: Annotated[float, Field(ge=0)] | None = None
    embedding_threshold: _Share | None = None
    method: str = "least_squares"
    reductions: str | None = None
    pattern: str | None = None
    widths: Literal["free", "equal", "global"] | None = None
    refit: bool | None = None
    plan: Path | None = None
    min_count: Annotated[int, Field(ge=0)] | None = None
    keep_tokens: Path | None = None
    calibration_tokens: Count = 65_536
    recover_tokens: Count = 375_000
    time: Annotated[int, BeforeValidator(parse_time)] | None = None
    recover: Literal["tokens", "dense", "no"] = "tokens"
    qat: bool | None = None
    distill: _Share = 0.5
    lora_rank: Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count = 1
    device: Annotated[str, BeforeValidator(check_form)] = CPU
    max_memory: _Size | None = None
    baseline: bool = True
    out: Path | None = None
    work: Path | None = None
    force: bool = False
    offline: bool = False

    def __post_init__(self) -> None:
        if bool(self.domain) == bool(self.corpus):
            raise UsageError("give either --domain or --corpus", "minigpt-edge domains lists the domains")
        if not self.targets:
            raise UsageError("no target", "give at least one --target; minigpt-edge targets lists them")
        self._check_budget()
        self._check_idle()

    def _check_budget(self) -> None:
        names = ("sparsity", "max_size", "max_params", "min_speedup", "threshold")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both say how much to remove", "give one of them")
        gguf = any(name.startswith("gguf") for name in self.targets)
        if (self.max_size or self.min_speedup) and not gguf:
            raise UsageError(f"{given[0]} works with GGUF targets", "add --target gguf-q4")

    def _check_idle(self) -> None:
        """UsageError for an option that would do nothing beside another."""
        decided = ("sparsity", "max_params", "min_speedup", "threshold", "embedding_threshold", "widths")
        kept = ["keep_tokens", "min_count"]
        idle = {
            "with --corpus: only a domain has sources": ["source"] if self.corpus else [],
            "with --domain: a domain knows its own": ["text_column"] if self.domain else [],
            "with --plan, which says what is kept": [*decided, *kept] if self.plan else [],
            "with --no-recover": ["lora_rank", "time", "qat"] if self.recover == "no" else [],
            "with --recover-until": ["qat"] if self.recover == "dense" else [],
            "with --threshold, which decides unit by unit": ["widths"] if self.threshold is not None else [],
        }
        for why, names in idle.items():
            for name in names:
                if getattr(self, name) not in (None, (), False):
                    raise UsageError(f"--{name.replace('_', '-')} does nothing {why}", "leave it out")


def recipe_of(
    *,
    recover_until: str | None = None,
    no_recover: bool = False,
    no_baseline: bool = False,
    threads: int | None = None,
    **options: Any,
) -> Recipe:
    """The recipe that options of the command `build` describe; the other options are `Recipe`'s own.

    Sizes and counts may be text, such as "40MB" and "60M"; paths may be text; threads None is all cores.

    Raises:
        TypeError: there is no such option.
        UsageError: two options contradict each other, or a value is not what it may be.
    """
    if no_recover and recover_until:
        raise UsageError("--no-recover and --recover-until contradict each other")
    for name in ("calibration_tokens", "recover_tokens"):
        if options.get("time") is not None and options.get(name) is not None:
            given_as = f"--{name.replace('_', '-')}"
            raise UsageError(f"--time chooses {given_as}, so they contradict each other", "give one of them")
    if unknown := sorted(options.keys() - (Recipe.__dataclass_fields__.keys() - {"recover", "baseline"})):
        raise TypeError(f"build has no option {unknown[0]!r}")
    given = {name: value for name, value in options.items() if value not in ((), None)}
    given |= {"recover": "no" if no_recover else recover_until or "tokens", "baseline": not no_baseline}
    try:
        return Recipe(**given, threads=threads or parallel.all_cores())
    except ValidationError as error:
        name, _, wrong = problem(error).partition(" ")
        raise UsageError(f"--{name.replace('_', '-')} {wrong}") from error
