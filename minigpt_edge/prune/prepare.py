"""What pruning starts from: a model with a trimmed vocabulary, its tokenizer files, calibration windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.prune.decide import Progress, ShrinkSettings, choose_vocabulary
from minigpt_edge.prune.methods.registry import BLOCKS, STRUCTURED
from minigpt_edge.prune.plan import Plan, check_plan, read_plan
from minigpt_edge.prune.vocabulary.trim import remap_config, trim_tokenizer
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, read_json, write_json
from minigpt_edge_runtime.formats.tokenizer_files import GENERATION_CONFIG

if TYPE_CHECKING:
    import numpy as np
    import torch

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Ready:
    """A model whose vocabulary is trimmed, and what its blocks are decided from.

    Attributes:
        dense: its parameters before.
        remove: how many still have to go.
    """

    model: Any
    config: dict[str, Any]
    plan: Plan | None
    tokens: tuple[int, ...]
    windows: torch.Tensor
    dense: int
    remove: int


def prepare(
    base: Path,
    fingerprint: str,
    documents: Sequence[str],
    out: Path,
    settings: ShrinkSettings,
    plan: Path | None,
    terms: Sequence[str],
    on_progress: Progress,
    lazy: bool,
) -> Ready:
    """Load a checkpoint, trim its vocabulary, write the tokenizer and configs, cut calibration windows.

    Args:
        lazy: leave the model's blocks on disk.
    """
    import torch

    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import (
        count_parameters,
        load_model,
        read_config,
        stored_parameters,
        trim_embeddings,
    )

    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # products with denormal numbers are many times slower
    config = read_config(base)
    given = read_plan(plan) if plan else None
    if given and plan:
        check_plan(given, config, fingerprint, plan)
    # what is written at the end, and what changed blocks take until then
    need_space(out, 4 * stored_parameters(base) * (2 if lazy else 1), "pruning")
    model: Any = load_model(base, lazy=lazy, changed=out / "blocks")
    attention.use_in(model)
    dense = count_parameters(model)
    shrinks = settings.pattern in (STRUCTURED, BLOCKS)
    remove = round(settings.sparsity * dense) if shrinks else 0
    on_progress("vocabulary", 0, 1)
    tokens = given.tokens if given else choose_vocabulary(base, config, documents, settings, remove, terms)
    old_to_new = trim_tokenizer(base, out / CHECKPOINT, tokens)
    trim_embeddings(model, tokens)
    _write_configs(base, out / CHECKPOINT, old_to_new)
    on_progress("vocabulary", 1, 1)
    windows = calibration_windows(documents, out / CHECKPOINT, model.minigpt_edge["document_start"], settings)
    remove -= dense - count_parameters(model)
    return Ready(model, config, given, tokens, windows, dense, remove)


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

    from minigpt_edge.models.forward import read_tokenizer

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


def _write_configs(base: Path, directory: Path, old_to_new: np.ndarray) -> None:
    """config.json and generation_config.json with new token ids."""
    generation = base / GENERATION_CONFIG
    given = read_json(generation) if generation.exists() else {}
    config, changed = remap_config(read_json(base / "config.json"), given, old_to_new)
    write_json(directory / "config.json", config)
    if given:
        write_json(directory / generation.name, changed)
