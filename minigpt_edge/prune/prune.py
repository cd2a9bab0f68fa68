"""The prune stage: trim the vocabulary, decide what goes, cut and refit, write a checkpoint."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models import archs
from minigpt_edge.prune.decide import (
    NAME_BYTES,
    SENSITIVITY_TOKENS,
    SPARSITY_TOLERANCE,
    Decision,
    Limit,
    Progress,
    ShrinkSettings,
    decide,
)
from minigpt_edge.prune.methods.registry import BLOCKS, RANK, STRUCTURED, Method, get_method
from minigpt_edge.prune.plan import BlockPlan, Plan, write_plan
from minigpt_edge.prune.prepare import CHECKPOINT, Ready, prepare
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.formats.gguf_names import EMBEDDING, HEAD

if TYPE_CHECKING:
    import torch

    from minigpt_edge.prune.calibrate import Wanted
    from minigpt_edge.prune.sizing import SizeModel

PLAN = "plan.json"
IMPORTANCE = "imatrix.safetensors"


@dataclass
class Shrunk:
    """What a method did to the blocks: what is left of each, their inputs, and what else is worth telling."""

    blocks: tuple[BlockPlan, ...]
    importance: dict[str, torch.Tensor] = field(default_factory=dict)
    errors: list[dict[str, float]] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def shrink(
    base: Path,
    fingerprint: str,
    documents: Sequence[str],
    out: Path,
    settings: ShrinkSettings,
    *,
    plan: Path | None = None,
    terms: Sequence[str] = (),
    on_progress: Progress = lambda what, done, total: None,
    max_memory: int | None = None,
) -> dict[str, Any]:
    """Prune a checkpoint on documents and write `checkpoint/`, `plan.json` and `imatrix.safetensors`.

    Args:
        base: checkpoint directory of the dense model.
        fingerprint: sha256 that a plan names the dense model by.
        documents: texts of the training split.
        out: stage directory.
        plan: a plan to follow; its tokens, KV groups and neurons stay, refitted to these documents.
        terms: their tokens stay, whether or not the documents have them.
        on_progress: called with (what, done, total).
        max_memory: bytes that it may take, by an estimate; None for what is free.

    Returns:
        Metrics: parameters, sparsity, sizes per block, held-out errors, what the method tells.

    Raises:
        EdgeError: the sparsity can't be met, the plan is another model's, or there is too little text or
            memory.
    """
    from minigpt_edge.models.checkpoint import count_parameters, save_factors, save_model
    from minigpt_edge.prune import memory

    # what drops blocks or reduces ranks tries the whole model again and again
    may = settings.pattern not in (BLOCKS, RANK)
    lazy = memory.stays_on_disk(base, settings.calibration_tokens, max_memory, may=may)
    ready = prepare(base, fingerprint, documents, out, settings, plan, terms, on_progress, lazy)
    model, config = ready.model, ready.config
    done = _shrink(ready, settings, base, out, on_progress)
    final = Plan(
        fingerprint,
        ready.plan.method if ready.plan else settings.method,
        ready.tokens,
        done.blocks,
        (ready.dense, count_parameters(model)),
    )
    if ready.plan is None and settings.exact and settings.pattern == STRUCTURED:
        _check_sparsity(final, config, settings)
    save_model(model, out / CHECKPOINT, out / CHECKPOINT)
    if done.factors:
        save_factors(out / CHECKPOINT, done.factors)
    _write_importance(done.importance, bool(config.get("tie_word_embeddings")), out / IMPORTANCE)
    write_plan(final, out / PLAN)
    return _metrics(final, config, done)


def preview(
    base: Path,
    fingerprint: str,
    documents: Sequence[str],
    settings: ShrinkSettings,
    targets: Sequence[str],
    *,
    plan: Path | None = None,
    terms: Sequence[str] = (),
    on_progress: Progress = lambda what, done, total: None,
    max_memory: int | None = None,
) -> dict[str, Any]:
    """What `shrink` would leave, and how large the targets' files would be; nothing is pruned.

    Returns:
        {"vocabulary", "widths", "kv_groups", "parameters", "sparsity", "targets"}; of each target "type",
        "bytes" and "speedup" of decoding over the dense model at the same type, predicted from bytes read.
    """
    from minigpt_edge.prune import memory

    lazy = memory.stays_on_disk(base, settings.calibration_tokens, max_memory, may=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready = prepare(base, fingerprint, documents, folder, settings, plan, terms, on_progress, lazy)
        ready, method = _compensated(ready, settings)
        wanted = _decide(ready, settings, method, base, folder, on_progress).wanted
        blocks = list(zip(wanted.widths, wanted.kv_groups, strict=True))
        if wanted.exact:
            blocks = [(len(block.neurons), len(block.kv_groups)) for block in wanted.exact]
        tokens = len(ready.tokens)
        predicted = {}
        for target in targets:
            sizes = size_model(base, folder / CHECKPOINT, target, ready.config)
            predicted[target] = {
                "type": sizes.kind,
                "bytes": sizes.file_bytes(tokens, blocks),
                "speedup": sizes.speedup(tokens, blocks),
            }
        kept = _parameters(ready, blocks)
    return {
        "vocabulary": [ready.config["vocab_size"], tokens],
        "widths": [ready.config["intermediate_size"], [width for width, _ in blocks]],
        "kv_groups": [ready.config["num_key_value_heads"], [groups for _, groups in blocks]],
        "parameters": {"dense": ready.dense, "kept": kept},
        "sparsity": 1 - kept / ready.dense,
        "targets": predicted,
    }


def _parameters(ready: Ready, blocks: Sequence[tuple[int, int]]) -> int:
    """Parameters of the model if its blocks had these (width, KV groups)."""
    from minigpt_edge.models.checkpoint import count_parameters

    neuron, group, _ = archs.load_arch(ready.config).block_parameters(ready.config)
    width, groups = ready.config["intermediate_size"], ready.config["num_key_value_heads"]
    lost = sum((width - w) * neuron + (groups - g) * group for w, g in blocks)
    return count_parameters(ready.model) - lost


def _check_sparsity(plan: Plan, config: dict[str, Any], settings: ShrinkSettings) -> None:
    """EdgeError if what was asked for is missed by more than the tolerance and what sizes come in."""
    neuron, _, _ = archs.load_arch(config).block_parameters(config)
    step = settings.width_multiple * neuron / plan.parameters[0]
    if settings.widths == "equal":  # the vocabulary makes up for steps of all blocks, if it is not whole
        step *= len(plan.blocks) / 2 if len(plan.tokens) == config["vocab_size"] else 0
    tolerance = max(SPARSITY_TOLERANCE, step)
    if abs(plan.sparsity - settings.sparsity) > tolerance:
        raise EdgeError(
            f"the closest sparsity to {settings.sparsity:.2%} is {plan.sparsity:.2%}",
            "ask for another --sparsity, or use --widths free",
        )


def _shrink(ready: Ready, settings: ShrinkSettings, base: Path, out: Path, on_progress: Progress) -> Shrunk:
    """Do what the method and the pattern say to the blocks of a model whose vocabulary is trimmed."""
    arch = archs.load_arch(ready.config)
    if settings.pattern == BLOCKS:
        return _drop_blocks(ready, arch, on_progress)
    if settings.pattern == RANK:
        return _reduce_ranks(ready, arch, settings, on_progress)
    if settings.pattern != STRUCTURED:
        return _mask(ready, arch, settings, on_progress)
    from minigpt_edge.prune.calibrate import shrink_blocks

    ready, method = _compensated(ready, settings)
    decision = _decide(ready, settings, method, base, out, on_progress)
    result = shrink_blocks(
        ready.model,
        arch,
        ready.windows,
        decision.wanted,
        method,
        decision.metrics,
        seed=settings.seed,
        on_block=partial(on_progress, "blocks"),
    )
    return Shrunk(tuple(result.blocks), result.importance, result.errors)


def _compensated(ready: Ready, settings: ShrinkSettings) -> tuple[Ready, Method]:
    """The method with what the settings say of the weights that stay, and the model it works on.

    Biases that it needs count: as many more parameters have to go.
    """
    from minigpt_edge.models.checkpoint import count_parameters

    method = get_method(settings.method)
    if settings.compensation:
        method = dataclasses.replace(method, compensation=settings.compensation)
    if method.compensation != "bias":
        return ready, method
    arch, before = archs.load_arch(ready.config), count_parameters(ready.model)
    config = {**ready.config, **arch.give_output_biases(ready.model)}
    remove = ready.remove + count_parameters(ready.model) - before
    return dataclasses.replace(ready, config=config, remove=remove), method


def _decide(
    ready: Ready, settings: ShrinkSettings, method: Method, base: Path, out: Path, on_progress: Progress
) -> Decision:
    fits = _limit(ready, settings.limit, base, out / CHECKPOINT) if settings.limit else None
    arch = archs.load_arch(ready.config)
    return decide(
        ready.model,
        arch,
        ready.config,
        ready.windows,
        settings,
        method,
        ready.remove,
        ready.plan,
        fits,
        on_progress,
    )


def _limit(ready: Ready, limit: Limit, base: Path, tokenizer: Path) -> Callable[[Wanted], bool]:
    """Whether sizes of the blocks meet the limit."""
    sizes = size_model(base, tokenizer, limit.target, ready.config) if limit.kind != "parameters" else None
    tokens = len(ready.tokens)

    def fits(wanted: Wanted) -> bool:
        blocks = list(zip(wanted.widths, wanted.kv_groups, strict=True))
        if sizes is None:
            return _parameters(ready, blocks) <= limit.value
        if limit.kind == "bytes":
            return sizes.file_bytes(tokens, blocks) + NAME_BYTES <= limit.value
        return sizes.speedup(tokens, blocks) >= limit.value

    return fits


def size_model(base: Path, tokenizer: Path, target: str, config: dict[str, Any]) -> SizeModel:
    """Predicts the bytes of a target's file from sizes of blocks and the trimmed tokenizer's directory."""
    from minigpt_edge.prune.sizing import SizeModel
    from minigpt_edge_export.targets import parse_target

    return SizeModel(base, tokenizer, parse_target(target), {}, config)


def _mask(ready: Ready, arch: Any, settings: ShrinkSettings, on_progress: Progress) -> Shrunk:
    from minigpt_edge.prune.calibrate import measure_importance
    from minigpt_edge.prune.methods.masks import mask_blocks
    from minigpt_edge.prune.methods.pattern import parse_pattern

    model, windows = ready.model, ready.windows
    result = mask_blocks(
        model,
        arch,
        windows,
        settings.method,
        parse_pattern(settings.pattern),
        settings.sparsity,
        partial(on_progress, "blocks"),
    )
    importance = result.importance or measure_importance(model, arch, windows)
    told = {"zeros": result.sparsity, "seconds_of": result.seconds, "damping": result.damping}
    return Shrunk(_whole(model, arch), importance, told=told)


def _drop_blocks(ready: Ready, arch: Any, on_progress: Progress) -> Shrunk:
    from minigpt_edge.prune.calibrate import measure_importance
    from minigpt_edge.prune.methods.blocks import blocks_for, drop_blocks

    model, windows = ready.model, ready.windows
    whole = _whole(model, arch)
    count = blocks_for(arch, ready.config, ready.remove)
    result = drop_blocks(model, arch, windows, count, on_step=partial(on_progress, "blocks"))
    kept = tuple(block for index, block in enumerate(whole) if index not in result.removed)
    importance = measure_importance(model, arch, windows)
    return Shrunk(kept, importance, told={"removed_blocks": result.removed, "losses": result.losses})


def _reduce_ranks(ready: Ready, arch: Any, settings: ShrinkSettings, on_progress: Progress) -> Shrunk:
    """The reductions that were named; else the matrix of the best single one, composed over all blocks."""
    from minigpt_edge.evaluation.probe import Probe
    from minigpt_edge.prune.calibrate import measure_importance
    from minigpt_edge.prune.methods import laser

    model, windows = ready.model, ready.windows
    told: dict[str, Any] = {}
    wanted = laser.parse_reductions(settings.reductions) if settings.reductions else []
    if not wanted:
        texts = windows[: max(1, SENSITIVITY_TOKENS // windows.shape[1])].tolist()
        matrices = [name for name in ("gate", "up", "down") if name in arch.names]
        probe, reducer = Probe(model, arch, texts, [1] * len(texts)), laser.Reducer(model, arch)
        tried = laser.candidates(range(reducer.blocks // 2, reducer.blocks), matrices)
        trials = laser.search(reducer, probe.likelihood, tried, partial(on_progress, "single reductions"))
        matrix = trials[0].reduction.matrix
        found = laser.compose(reducer, probe.likelihood, matrix, on_step=partial(on_progress, "composition"))
        wanted = list(found.reductions)
        told = {
            "score": {"dense": found.dense, "reduced": found.score},
            "best_single": str(trials[0].reduction),
        }
    factors = laser.apply_reductions(model, arch, wanted, partial(on_progress, "ranks"))
    spared = sum(b.shape[0] * a.shape[1] - b.numel() - a.numel() for b, a in factors.values())
    told |= {"reductions": ",".join(map(str, wanted)), "spared_where_factors_run": max(0, spared)}
    return Shrunk(_whole(model, arch), measure_importance(model, arch, windows), told=told, factors=factors)


def _whole(model: Any, arch: Any) -> tuple[BlockPlan, ...]:
    sizes = [arch.sizes(block) for block in arch.blocks(model)]
    return tuple(
        BlockPlan(tuple(range(size["num_key_value_heads"])), tuple(range(size["intermediate_size"])))
        for size in sizes
    )


def _write_importance(importance: dict[str, torch.Tensor], tied: bool, path: Path) -> None:
    from safetensors.torch import save_file

    dropped = HEAD if tied else EMBEDDING
    save_file({n: t.float().contiguous() for n, t in importance.items() if n != dropped}, path)


def _metrics(plan: Plan, config: dict[str, Any], done: Shrunk) -> dict[str, Any]:
    return {
        "parameters": {"dense": plan.parameters[0], "kept": plan.parameters[1]},
        "sparsity": plan.sparsity,
        "vocabulary": [config["vocab_size"], len(plan.tokens)],
        "widths": [config["intermediate_size"], [len(block.neurons) for block in plan.blocks]],
        "kv_groups": [config["num_key_value_heads"], [len(block.kv_groups) for block in plan.blocks]],
        "held_out_errors": [
            {name: round(value, 5) for name, value in error.items()} for error in done.errors
        ],
        **done.told,
    }
