"""Recovery: full or LoRA fine-tuning of a shrunk model on the training split, resumable to the same bits."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.windows import read_texts
from minigpt_edge.models.forward import check_context, encode, read_tokenizer
from minigpt_edge.recover.packing import pack, read_documents
from minigpt_edge.recover.settings import MICRO_TOKENS, Settings
from minigpt_edge.recover.training_checkpoint import (
    work_folder,
)
from minigpt_edge.stages import parallel
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, sha256_file
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from minigpt_edge.recover.teacher import Teacher
    from minigpt_edge_runtime.scoring.held_out import Window

from minigpt_edge.recover.session import Progress, Session

STEP_TOKENS = 2048


LR = 6e-4


LORA_LR = 2e-3


def recover(
    checkpoint: Path,
    out: Path,
    *,
    train: Path,
    validation: Path,
    tokens: int,
    sequence_length: int = 512,
    teacher: Teacher | None = None,
    step_tokens: int = STEP_TOKENS,
    lr: float | None = None,
    lora_rank: int | None = None,
    micro_tokens: int = MICRO_TOKENS,
    seed: int = 0,
    threads: int = 2,
    evaluations: int = 3,
    patience: int = 2,
    until_perplexity: float | None = None,
    before: dict[str, float] | None = None,
    checkpoint_seconds: float = 90.0,
    resume: bool = True,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `train`, and write the best model into `out`.

    Several processes (`parallel`) call this with the same arguments, `out` included; the first writes.

    Args:
        checkpoint: checkpoint directory of the model to train.
        out: directory of the result; everything is written inside it, training checkpoints too.
        train: the corpus's train.jsonl.
        validation: the corpus's validation.texts.json.
        tokens: how many to train on, rounded up to whole steps; the text repeats where it is shorter.
        sequence_length, step_tokens: tokens of a sequence and of an optimizer step.
        teacher: the dense model, whose predictions are part of the target; None does without.
        lr: peak of AdamW's learning rate: 5 % linear warm-up, then a cosine to 0. None takes LR or LORA_LR.
        lora_rank: train adapters of that rank beside the blocks' matrices and merge them at the end, instead
            of training all weights; never compiled.
        micro_tokens: of one forward and backward pass at most; fewer take less memory and more time.
        evaluations: on the validation windows, evenly spread, besides one before training.
        patience: stop after that many evaluations in a row without improvement.
        until_perplexity: stop at an evaluation with this perplexity per base token or less.
        before: scores of `checkpoint` on `validation` (`perplexity.evaluate`), where known; else measured.
        checkpoint_seconds: time between training checkpoints.
        resume: go on from the last whole training checkpoint in `out`, if there is one.
        on_progress: called with the newest history entry plus "steps" and "eta_seconds" at every step, and
            with {"message"} where something is worth saying.

    Returns:
        {"history", "tokens", "seconds", "training_seconds", "tokens_per_second", "matmul_flops",
        "matmul_fraction", "compiled", "teacher_share", "lora_rank", "stopped", "best_step", "before",
        "after"}; a history entry has step, tokens, loss (nats per token), lr, tokens_per_second,
        and bits_per_byte and perplexity_per_base_token where the model was evaluated. The same goes to
        `out`/recovery.json.

    Raises:
        EdgeError: damaged input, too little text, divergence, or a training checkpoint of other settings.
    """
    import torch

    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover.lora import Adapter

    settings = Settings(
        tokens,
        sequence_length,
        step_tokens,
        lr if lr is not None else LORA_LR if lora_rank else LR,
        seed,
        threads,
        evaluations,
        patience,
        until_perplexity,
        teacher.share if teacher else 0.0,
        lora_rank,
        micro_tokens,
        parallel.processes(),
    )
    if lora_rank and parallel.wants_shards():
        raise EdgeError("LoRA trains too little to be worth shards", "start without FSDP, or without LoRA")
    begun = time.monotonic()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # products with denormal numbers are many times slower
    sequences, windows, data = _read_texts(checkpoint, train, validation, settings)
    model = load_model(checkpoint)
    attention.use_in(model)
    check_context(model, sequences)
    adapter = Adapter(model, lora_rank, seed) if lora_rank else None
    _need_space(out, model)
    inputs = _inputs(checkpoint, train, validation, teacher)
    key = {"settings": asdict(settings), "inputs": [sha256_file(path) for path in inputs]}
    work = work_folder(out, key, resume)
    session = Session(
        model,
        settings,
        work,
        sequences,
        windows,
        on_progress,
        begun,
        checkpoint_seconds,
        teacher.load() if teacher else None,
        adapter,
        checkpoint,
    )
    session.run(data, before)
    result = session.result()
    if parallel.rank() == 0:
        session.publish(out, result)
    return result


def _need_space(out: Path, model: nn.Module) -> None:
    """EdgeError unless the result, two training checkpoints and the best weights find room in `out`."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need_space(out, 4 * sum(p.numel() for p in model.parameters()) + 28 * trained, "recovery")


def _inputs(checkpoint: Path, train: Path, validation: Path, teacher: Teacher | None) -> list[Path]:
    weights = sorted(checkpoint.glob("*.safetensors"))
    taught = sorted(teacher.checkpoint.glob("*.safetensors")) if teacher else []
    return [checkpoint / "config.json", checkpoint / TOKENIZER, *weights, train, validation, *taught]


def _read_texts(
    checkpoint: Path, train: Path, validation: Path, settings: Settings
) -> tuple[list[list[int]], list[Window], np.ndarray]:
    """Validation windows as token ids and as records, and the packed training sequences.

    Raises:
        EdgeError: damaged input, too little text, or sequences longer than the model's context.
    """
    from minigpt_edge.models.checkpoint import read_config

    config = read_config(checkpoint)
    limit, length = config["max_position_embeddings"], settings.sequence_length
    if length > limit:
        raise EdgeError(f"sequences of {length} tokens exceed the model's context of {limit}")
    document_start, windows = read_texts(validation)
    tokenizer = read_tokenizer(checkpoint)
    data = pack(
        read_documents(train),
        tokenizer,
        config.get("minigpt_edge", {}).get("document_start", document_start),
        length=length,
        count=settings.steps * settings.sequences_per_step,
        seed=settings.seed,
    )
    return encode(tokenizer, document_start, [w.text for w in windows]), windows, data
