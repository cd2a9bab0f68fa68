"""What a build is asked to do: one frozen dataclass, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minigpt_edge_runtime.errors import UsageError

PAPER_SPARSITY = 0.4188  # the best figure of Mini-GPTs (arXiv 2312.12682)


@dataclass(frozen=True)
class Recipe:
    """Settings of a build; `prune.settings.check_recipe` checks them against the method.

    Attributes:
        domain: a known domain; or None with `corpus`.
        source: which of the domain's sources, None for its default.
        corpus: files, folders or hub dataset ids.
        text_column: column of jsonl, csv, parquet or a hub dataset that holds the text.
        model: short name, directory, GGUF file or hub id; None for the default.
        targets: what to export.
        sparsity: fraction of the parameters that go, vocabulary counted; of the blocks' weights, for masks.
            At most one of sparsity, max_size, max_params, min_speedup and threshold; none is PAPER_SPARSITY.
        max_size: bytes of the GGUF file at most.
        max_params: parameters at most.
        min_speedup: decoding of the first target over the dense model's at the same type, predicted from
            bytes.
        threshold: mean |activation| up to which neurons and KV groups go (method contextual).
        embedding_threshold: share of the training tokens up to which tokens go; None for min_count.
        method: how it is decided what goes.
        reductions: of the method laser, "BLOCK:MATRIX:RHO,…"; None searches on held-out text.
        pattern: "structured" (whole units), "unstructured" or "n:m" (masks), "blocks"; None for the method's.
        widths: "free" (blocks may differ, GGUF architecture deci), "equal" (llama) or "global" (one cut over
            all blocks' scores); None for the method's.
        refit: least-squares refit of what is kept: True, False, None for what the method does.
        plan: a plan.json to follow instead of choosing; it goes with neither a sparsity nor what stands in
            its place, but max_size, which also holds for the file's types.
        min_count: tokens seen less often in the training split leave the vocabulary; 0 keeps all.
        keep_tokens: a file of terms, one a line, whose tokens stay.
        calibration_tokens, recover_tokens: tokens of the training split.
        recover: "tokens" (all of recover_tokens), "dense" (stop when validation perplexity is the dense
            model's, at most recover_tokens), or "no".
        lora_rank: rank of LoRA adapters that are trained instead of all weights, and merged; None trains all.
        distill: share of the dense model's predictions in the fine-tuning target at the first step; it falls
            linearly to 0 at the last. 0 does without.
        seed, threads: with both equal, results are equal to the byte.
        max_memory: bytes that pruning and recovery may take; None for what is free.
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
    sparsity: float | None = None
    max_size: int | None = None
    max_params: int | None = None
    min_speedup: float | None = None
    threshold: float | None = None
    embedding_threshold: float | None = None
    method: str = "least_squares"
    reductions: str | None = None
    pattern: str | None = None
    widths: str | None = None
    refit: bool | None = None
    plan: Path | None = None
    min_count: int = 5
    keep_tokens: Path | None = None
    calibration_tokens: int = 131_072
    recover_tokens: int = 280_000
    recover: str = "tokens"
    distill: float = 0.5
    lora_rank: int | None = None
    seed: int = 0
    threads: int = 1
    max_memory: int | None = None
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
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(f"--sparsity is {self.sparsity}, it must be at least 0 and below 1")
        self._check_budget()
        self._check_idle()
        if self.lora_rank is not None and self.lora_rank < 1:
            raise UsageError(f"--lora-rank is {self.lora_rank}, it must be at least 1")
        if not 0 <= self.distill <= 1:
            raise UsageError(f"--distill is {self.distill}, it must be from 0 to 1")
        for name in ("calibration_tokens", "recover_tokens", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}, it must be at least 1"
                )

    def _check_budget(self) -> None:
        names = ("sparsity", "max_size", "max_params", "min_speedup", "threshold")
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} both say how much goes", "give one of them")
        gguf = any(name.startswith("gguf") for name in self.targets)
        if (self.max_size or self.min_speedup) and not gguf:
            raise UsageError(f"{given[0]} works with GGUF targets", "add --target gguf-q4")
        if (
            self.threshold is not None or self.embedding_threshold is not None
        ) and self.method != "contextual":
            raise UsageError("thresholds are those of Mini-GPTs", "add --method contextual")

    def _check_idle(self) -> None:
        """UsageError for an option that would do nothing beside another."""
        decided = ("sparsity", "max_params", "min_speedup", "threshold", "embedding_threshold", "widths")
        counted = ["min_count"] if self.min_count != Recipe.min_count else []
        idle = {
            "with --corpus: only a domain has sources": ["source"] if self.corpus else [],
            "with --domain: a domain knows its own": ["text_column"] if self.domain else [],
            "with --plan, which says what stays": [*decided, "keep_tokens", *counted] if self.plan else [],
            "with --no-recover": ["lora_rank"] if self.recover == "no" else [],
        }
        for why, names in idle.items():
            for name in names:
                if getattr(self, name) is not None:
                    raise UsageError(f"--{name.replace('_', '-')} does nothing {why}", "leave it out")
