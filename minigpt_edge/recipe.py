"""What a build is asked to do: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt_edge_runtime.errors import UsageError

PAPER_SPARSITY = 0.4188  # the best figure of Mini-GPTs (arXiv 2312.12682)


@dataclass(frozen=True)
class Recipe:
    """Settings of a build.

    Attributes:
        domain: a known domain; or None with `corpus`.
        source: which of the domain's sources, None for its default.
        corpus: files, folders or hub dataset ids.
        text_column: column of jsonl, csv, parquet or a hub dataset that holds the text.
        model: short name, directory, GGUF file or hub id; None for the default.
        targets: what to export.
        sparsity: fraction of the parameters that go, vocabulary counted.
        method: how units are scored.
        widths: "free" (blocks may differ, GGUF architecture deci) or "equal" (llama).
        plan: a plan.json to follow instead of choosing.
        min_count: tokens seen less often in the training split leave the vocabulary.
        keep_tokens: a file of terms, one a line, whose tokens stay.
        calibration_tokens, recover_tokens: tokens of the training split.
        recover: "tokens" (all of recover_tokens), "dense" (stop when validation perplexity is the dense
            model's, at most recover_tokens), or "no".
        distill: share of the dense model's predictions in the fine-tuning target at the first step; it falls
            linearly to 0 at the last. 0 does without.
        seed, threads: with both equal, results are equal to the byte.
        baseline: also measure the dense model.
        out: the bundle; None for MODEL-DOMAIN in the current directory.
        work: where stages are kept; None for the cache.
        force: replace the files of an earlier bundle in `out`.
        offline: never touch the network.
    """

    domain: str | None = None
    source: str | None = None
    corpus: tuple[str, ...] = ()
    text_column: str | None = None
    model: str | None = None
    targets: tuple[str, ...] = ("gguf-q4",)
    sparsity: float = PAPER_SPARSITY
    method: str = "least_squares"
    widths: str = "free"
    plan: Path | None = None
    min_count: int = 5
    keep_tokens: Path | None = None
    calibration_tokens: int = 131_072
    recover_tokens: int = 280_000
    recover: str = "tokens"
    distill: float = 0.5
    seed: int = 0
    threads: int = 1
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
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"--sparsity is {self.sparsity}, it must be at least 0 and below 1")
        if not 0 <= self.distill <= 1:
            raise UsageError(f"--distill is {self.distill}, it must be from 0 to 1")
        for name in ("min_count", "calibration_tokens", "recover_tokens", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, it must be at least 1"
                )
