"""The prune stage: trim the vocabulary, decide what goes, cut and refit, write a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge import archs
from minigpt_edge.plan import Plan, check_plan, read_plan, write_plan
from minigpt_edge.prune import get_method
from minigpt_edge.shrink import vocabulary
from minigpt_edge.shrink.trim import config_token_ids, remap_config, trim_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch

PLAN = "plan.json"
IMPORTANCE = "imatrix.safetensors"
CHECKPOINT = "checkpoint"
WIDTH_MULTIPLE = 32  # the block of the 32-wide quantization types
SENSITIVITY_TOKENS = 8192
SPARSITY_TOLERANCE = 0.005

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ShrinkSettings:
    """What decides the result of pruning, besides the model and the corpus."""

    sparsity: float
    method: str
    widths: str
    min_count: int
    calibration_tokens: int
    window: int
    seed: int
    threads: int
    width_multiple: int = WIDTH_MULTIPLE


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

    Returns:
        Metrics: parameters, sparsity, sizes per block, held-out errors.

    Raises:
        EdgeError: the sparsity can't be met, the plan is another model's, or there is too little text.
    """
    import torch

    from minigpt_edge import attention
    from minigpt_edge.calibrate import shrink_blocks
    from minigpt_edge.checkpoint import (
        count_parameters,
        load_model,
        read_config,
        save_model,
        trim_embeddings,
    )

    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # products with denormal numbers are many times slower
    config = read_config(base)
    arch = archs.load_arch(config["model_type"])
    given = read_plan(plan) if plan else None
    if given and plan:
        check_plan(given, config, fingerprint, plan)
    model: Any = load_model(base)
    attention.use_in(model)
    dense = count_parameters(model)
    remove = round(settings.sparsity * dense)
    on_progress("vocabulary", 0, 1)
    tokens = _choose_vocabulary(base, config, documents, settings, remove, given, terms)
    old_to_new = trim_tokenizer(base, out / CHECKPOINT, tokens)
    trim_embeddings(model, tokens)
    on_progress("vocabulary", 1, 1)
    windows = calibration_windows(documents, out / CHECKPOINT, model.minigpt_edge["document_start"], settings)
    remove -= dense - count_parameters(model)
    wanted, metrics = _decide(model, arch, config, windows, settings, remove, given, on_progress)
    method = get_method(settings.method)
    result = shrink_blocks(
        model, arch, windows, wanted, method, metrics, lambda done, total: on_progress("blocks", done, total)
    )
    kept = count_parameters(model)
    final = Plan(
        fingerprint, given.method if given else settings.method, tokens, tuple(result.blocks), (dense, kept)
    )
    if given is None and abs(final.sparsity - settings.sparsity) > SPARSITY_TOLERANCE:
        raise EdgeError(
            f"the closest sparsity to {settings.sparsity:.2%} is {final.sparsity:.2%}, half a point off",
            "ask for another --sparsity, or use --widths free",
        )
    save_model(model, base, out / CHECKPOINT, tokenizer=out / CHECKPOINT)
    _finish_config(base, out / CHECKPOINT, old_to_new)
    _write_importance(result.importance, bool(config.get("tie_word_embeddings")), out / IMPORTANCE)
    write_plan(final, out / PLAN)
    return _metrics(final, config, result.errors)


def _choose_vocabulary(
    base: Path,
    config: dict[str, Any],
    documents: Sequence[str],
    settings: ShrinkSettings,
    remove: int,
    plan: Plan | None,
    terms: Sequence[str],
) -> tuple[int, ...]:
    """Kept token ids. Where the blocks can't meet the sparsity exactly, the vocabulary's size does."""
    if plan:
        return plan.tokens
    data = read_json(base / "tokenizer.json")
    if remove <= 0:
        return tuple(sorted(set(data["model"]["vocab"].values()) | {t["id"] for t in data["added_tokens"]}))
    generation = base / "generation_config.json"
    always = config_token_ids(config, read_json(generation) if generation.exists() else {})
    counts = vocabulary.count_tokens(vocabulary.open_tokenizer(data), documents)
    choose = partial(vocabulary.choose_tokens, data, counts, keep=terms, always=always)
    tokens = choose(min_count=settings.min_count)
    row = _row_parameters(config)
    gone = config["vocab_size"] - len(tokens)
    if gone * row > remove:  # a low sparsity is met by the rarest tokens alone
        return tuple(
            choose(size=min(len(vocabulary.read_vocabulary(data).ids), config["vocab_size"] - remove // row))
        )
    if settings.widths == "equal":
        neuron, _, _ = archs.load_arch(config["model_type"]).block_parameters(config)
        step = neuron * settings.width_multiple * config["num_hidden_layers"]
        steps = -(-(remove - gone * row) // step)
        return tuple(choose(size=config["vocab_size"] - max(0, remove - steps * step) // row))
    return tuple(tokens)


def _row_parameters(config: dict[str, Any]) -> int:
    """Parameters of one token: a row of the embedding, and of the head where it is not tied."""
    return int(config["hidden_size"]) * (1 if config.get("tie_word_embeddings") else 2)


def calibration_windows(
    documents: Sequence[str], tokenizer_dir: Path, document_start: str, settings: ShrinkSettings
) -> torch.Tensor:
    """Windows of token ids, int64 [n, window], each starting with the document-start token.

    One window from each document in shuffled order, then a second from each, and so on: many documents
    with few tokens each are worth more than few whole ones.

    Raises:
        EdgeError: the documents have too few whole windows.
    """
    import random

    import torch

    from minigpt_edge.evaluate.perplexity import read_tokenizer

    tokenizer = read_tokenizer(tokenizer_dir)
    start = tokenizer.token_to_id(document_start)
    if start is None:
        raise EdgeError(f"the vocabulary lacks {document_start!r}, which every text starts from")
    order = list(range(len(documents)))
    random.Random(settings.seed).shuffle(order)
    body, needed = settings.window - 1, settings.calibration_tokens // settings.window
    if needed < 2:
        raise EdgeError(
            f"calibration needs at least 2 windows of {settings.window} tokens",
            f"give --calibration-tokens of {2 * settings.window:,} or more",
        )
    encodings = tokenizer.encode_batch_fast([documents[i] for i in order], add_special_tokens=False)
    parts = [encoding.ids for encoding in encodings]
    windows: list[list[int]] = []
    filled: list[int] = []
    for turn in range(max(-(-len(ids) // body) for ids in parts)):
        for ids in parts:
            piece = ids[turn * body : (turn + 1) * body]
            if piece and len(windows) < needed:
                filled += [start, *piece]  # short texts share a window
                if len(filled) >= settings.window:
                    windows.append(filled[: settings.window])
                    filled = []
    if len(windows) < needed:
        raise EdgeError(
            f"the training text fills {len(windows)} windows of {settings.window} tokens, but calibration on "
            f"{settings.calibration_tokens:,} tokens needs {needed}",
            "give more text, or a lower --calibration-tokens",
        )
    return torch.tensor(windows)


def _decide(
    model: Any,
    arch: Any,
    config: dict[str, Any],
    windows: torch.Tensor,
    settings: ShrinkSettings,
    remove: int,
    plan: Plan | None,
    on_progress: Progress,
) -> tuple[Any, Any]:
    """Sizes per block, and the Fisher information of the blocks' outputs where it was measured."""
    from minigpt_edge.allocate import allocate, measure_costs
    from minigpt_edge.calibrate import Wanted

    blocks = config["num_hidden_layers"]
    full = [config["intermediate_size"]] * blocks, [config["num_key_value_heads"]] * blocks
    if plan:
        return Wanted(*full, exact=plan.blocks), None
    neuron, group, _ = arch.block_parameters(config)
    if remove < neuron * settings.width_multiple:
        return Wanted(*full), None
    if settings.widths == "equal":
        steps = round(remove / (neuron * settings.width_multiple * blocks))
        width = config["intermediate_size"] - steps * settings.width_multiple
        if width < settings.width_multiple:
            raise EdgeError(
                f"a sparsity of {settings.sparsity:.2%} leaves no FFN neurons", "ask for a lower --sparsity"
            )
        return Wanted([width] * blocks, full[1]), None
    probe = windows[: max(1, SENSITIVITY_TOKENS // windows.shape[1])]
    costs = measure_costs(
        model,
        arch,
        probe,
        settings.width_multiple,
        settings.seed,
        lambda d, t: on_progress("sensitivity", d, t),
    )
    slack = int(SPARSITY_TOLERANCE * sum(parameter.numel() for parameter in model.parameters()))
    widths, groups = allocate(
        costs, neuron, group, remove, min_width=4 * settings.width_multiple, slack=slack
    )
    return Wanted(widths, groups), [cost.metrics for cost in costs]


def _finish_config(base: Path, directory: Path, old_to_new: np.ndarray) -> None:
    """New token ids in config.json and generation_config.json."""
    generation = base / "generation_config.json"
    given = read_json(generation) if generation.exists() else {}
    config, changed = remap_config(read_json(directory / "config.json"), given, old_to_new)
    write_json(directory / "config.json", config)
    if given:
        write_json(directory / generation.name, changed)


def _write_importance(importance: dict[str, torch.Tensor], tied: bool, path: Path) -> None:
    from safetensors.torch import save_file

    dropped = "output.weight" if tied else "token_embd.weight"
    save_file({n: t.float().contiguous() for n, t in importance.items() if n != dropped}, path)


def _metrics(plan: Plan, config: dict[str, Any], errors: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "parameters": {"dense": plan.parameters[0], "kept": plan.parameters[1]},
        "sparsity": plan.sparsity,
        "vocabulary": [config["vocab_size"], len(plan.tokens)],
        "widths": [config["intermediate_size"], [len(block.neurons) for block in plan.blocks]],
        "kv_groups": [config["num_key_value_heads"], [len(block.kv_groups) for block in plan.blocks]],
        "held_out_errors": [{name: round(value, 5) for name, value in error.items()} for error in errors],
    }
