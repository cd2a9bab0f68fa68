"""What pruning starts from: a model with a trimmed vocabulary, its tokenizer files, calibration windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.corpus import read_split
from minigpt_edge.data.training_windows import TrainingWindows
from minigpt_edge.models import archs
from minigpt_edge.prune import memory
from minigpt_edge.prune.budget import Texts, decide_together
from minigpt_edge.prune.context import (
    CHECKPOINT,
    SENSITIVITY_TOKENS,
    PruneContext,
    PruneInputs,
    PruneSettings,
)
from minigpt_edge.prune.decide import choose_vocabulary
from minigpt_edge.prune.methods.registry import pruner_of
from minigpt_edge.prune.plan import check_plan, read_plan
from minigpt_edge.prune.vocabulary.choose import count_tokens, token_ids
from minigpt_edge.prune.vocabulary.trim import trim_checkpoint
from minigpt_edge.stages.device import here
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space

if TYPE_CHECKING:
    import torch


def prepare(inputs: PruneInputs, directory: Path) -> PruneContext:
    """Load a checkpoint, trim its vocabulary, write the tokenizer and configs, cut calibration windows.

    Raises:
        EdgeError: the plan is another model's, or there is too little text, disk or memory.
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
    from minigpt_edge.models.forward import read_tokenizer
    from minigpt_edge.prune.units import UnitPruner

    settings, base, pruner = inputs.settings, inputs.base, pruner_of(inputs.settings)
    lazy = memory.stays_on_disk(base, settings.calibration_tokens, inputs.max_memory, may=pruner.blockwise)
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # products with denormal numbers are many times slower
    config, documents = read_config(base), read_split(inputs.corpus, "train")
    plan = read_plan(inputs.plan) if inputs.plan else None
    if plan and inputs.plan:
        check_plan(plan, config, inputs.fingerprint, inputs.plan)
    # Room for the result, and for changed blocks that lie on disk until then.
    need_space(directory, 4 * stored_parameters(base) * (2 if lazy else 1), "pruning")
    model: Any = load_model(base, lazy=lazy, changed=directory / "blocks")
    attention.use_in(model)
    dense = count_parameters(model)
    remove = round(settings.sparsity * dense) if pruner.removes else 0
    inputs.on_progress("vocabulary", 0, 1)
    arch, decision = archs.load_arch(config), None
    start = model.minigpt_edge["document_start"]
    if plan:
        tokens = plan.tokens
    elif settings.by_loss and isinstance(pruner, UnitPruner) and (remove > 0 or not settings.exact):
        ids = list(token_ids(read_tokenizer(base), documents))
        probe = replace(settings, calibration_tokens=min(SENSITIVITY_TOKENS, settings.calibration_tokens))
        windows = calibration_windows(documents, base, start, probe)
        whole = PruneContext(inputs, directory, model, arch, config, windows, dense=dense, remove=remove)
        texts = Texts(ids, sum(len(text.encode()) for text in documents))
        tokens, decision = decide_together(pruner.compensated(whole)[0], texts)
    else:
        tokens = choose_vocabulary(inputs, config, count_tokens(read_tokenizer(base), documents), remove)
    trim_checkpoint(base, directory / CHECKPOINT, tokens)
    trim_embeddings(model, tokens)
    inputs.on_progress("vocabulary", 1, 1)
    windows = calibration_windows(documents, directory / CHECKPOINT, start, settings)
    remove -= dense - count_parameters(model)
    return PruneContext(
        inputs, directory, model, arch, config, windows, tokens, plan, dense, remove, decision
    )


def calibration_windows(
    documents: Sequence[str], tokenizer_dir: Path, document_start: str, settings: PruneSettings
) -> torch.Tensor:
    """The first windows that recovery will train on, token ids int64 [n, window] without the predicted last.

    Raises:
        EdgeError: the documents have too few whole windows.
    """
    import numpy as np
    import torch

    from minigpt_edge.models.forward import read_tokenizer

    needed = settings.calibration_tokens // settings.window
    if needed < 2:
        raise EdgeError(
            f"calibration needs at least 2 windows of {settings.window} tokens",
            f"give --calibration-tokens of {2 * settings.window:,} or more",
        )
    tokenizer = read_tokenizer(tokenizer_dir)
    cut = TrainingWindows(documents, tokenizer, document_start, length=settings.window, seed=settings.seed)
    windows = list(islice(cut.one_pass(), needed))
    if len(windows) < needed:
        raise EdgeError(
            f"the training text fills {len(windows)} windows of {settings.window} tokens, but calibration on "
            f"{settings.calibration_tokens:,} tokens needs {needed}",
            "give more text, or a lower --calibration-tokens",
        )
    return here(torch.from_numpy(np.stack(windows)[:, :-1]).long())
