"""Recovery: full or LoRA fine-tuning of a pruned model on the training split, resumable to the same bits."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.data.corpus import read_documents
from minigpt_edge.data.training_windows import TrainingWindows
from minigpt_edge.data.windows import read_texts
from minigpt_edge.models.forward import check_context, encode, read_tokenizer
from minigpt_edge.recover.config import Progress, RecoverConfig, TrainingTexts
from minigpt_edge.recover.session import Session, Validation, compiles
from minigpt_edge.recover.training_checkpoint import last_checkpoint, work_folder
from minigpt_edge.stages import parallel
from minigpt_edge.stages.memory import keep_freed
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, sha256_file
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from minigpt_edge.models.dense_states import DenseStates


def recover(
    checkpoint: Path,
    out: Path,
    texts: TrainingTexts,
    config: RecoverConfig,
    *,
    before: dict[str, float] | None = None,
    on_progress: Progress = lambda entry: None,
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `texts.train`, and write the best model into `out`.

    Several processes (`parallel`) call this with the same arguments, `out` included; the first writes.

    Args:
        checkpoint: checkpoint directory of the model to train.
        out: directory of the result; everything is written inside it, training checkpoints too.
        before: scores of `checkpoint` on `texts.validation` (`perplexity.evaluate`), where known; else they
            are measured.
        on_progress: called with the newest history entry plus "steps" and "eta_seconds" at every step, and
            with {"message"} where something is worth logging.

    Returns:
        {"history", "tokens", "seconds", "training_seconds", "tokens_per_second", "matmul_flops",
        "matmul_fraction", "compiled", "grid", "teacher_share", "taught_tokens", "lora_rank", "stopped",
        "best_step", "before", "after"}; a history entry has step, tokens, loss (nats per token), lr,
        tokens_per_second, and bits_per_byte and perplexity_per_base_token where the model was evaluated. The
        same is written to `out`/recovery.json.

    Raises:
        EdgeError: damaged input, too little text, divergence, or a training checkpoint of other settings.
    """
    import torch

    from minigpt_edge.models.forward import load_fast
    from minigpt_edge.recover.flops import matmul_flops
    from minigpt_edge.recover.lora import Adapter
    from minigpt_edge.recover.on_grid import OnGrid
    from minigpt_edge.recover.trainer import train

    if config.keep_zeros and parallel.wants_shards():
        raise EdgeError("the zeros of a mask are not kept in shards", "start without FSDP")
    if config.lora_rank and parallel.wants_shards():
        raise EdgeError("LoRA trains too little to be worth shards", "start without FSDP, or without LoRA")
    begun = time.monotonic()
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # products with denormal numbers are many times slower
    validation, data = _read(checkpoint, texts, config)
    model = load_fast(checkpoint)
    check_context(model, validation.sequences)
    adapter = Adapter(model, config.lora_rank, config.seed) if config.lora_rank else None
    grid = OnGrid(model, checkpoint, config.grid, compiled=compiles(config)) if config.grid else None
    _need_space(out, model)
    inputs = [sha256_file(path) for path in _inputs(checkpoint, texts, config)]
    work = work_folder(out, {"settings": config.key(), "inputs": inputs}, config.resume)
    session = Session(
        config,
        checkpoint,
        work=work,
        model=model,
        lessons=_lessons(config, data, work),
        adapter=adapter,
        grid=grid,
        validation=validation,
        report=on_progress,
        begun=begun,
        matmul=matmul_flops(),
    )
    resumed = parallel.broadcast(None if parallel.rank() else last_checkpoint(session.work, config.fork))
    if resumed:
        session.resume(resumed)
    with keep_freed():
        if resumed or not session.begin(before):
            train(session, data, resumed)
    result = session.result()
    if parallel.rank() == 0:
        session.publish(out, result)
    return result


def _lessons(config: RecoverConfig, data: np.ndarray, work: Path) -> DenseStates | None:
    """What the teacher says of the first windows; the first process computes it where that is needed."""
    if config.teacher is None:
        return None
    if parallel.rank():
        parallel.barrier()
        return config.teacher.lessons(data, work)
    found = config.teacher.lessons(data, work)
    parallel.barrier()
    return found


def _need_space(out: Path, model: nn.Module) -> None:
    """EdgeError unless the result, two training checkpoints and the best weights find room in `out`."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need_space(out, 4 * sum(p.numel() for p in model.parameters()) + 28 * trained, "recovery")


def _inputs(checkpoint: Path, texts: TrainingTexts, config: RecoverConfig) -> list[Path]:
    weights = sorted(checkpoint.glob("*.safetensors"))
    teachers = config.teacher.files() if config.teacher else []
    teachers += [config.grid.importance] if config.grid else []
    own = [checkpoint / "config.json", checkpoint / TOKENIZER, *weights]
    return [*own, texts.train, texts.validation, *teachers]


def _read(checkpoint: Path, texts: TrainingTexts, config: RecoverConfig) -> tuple[Validation, np.ndarray]:
    """The validation windows, and the packed training sequences.

    Raises:
        EdgeError: damaged input, too little text, or sequences longer than the model's context.
    """
    from minigpt_edge.models.checkpoint import read_config

    model_config, length = read_config(checkpoint), config.sequence_length
    limit = model_config["max_position_embeddings"]
    if length > limit:
        raise EdgeError(f"sequences of {length} tokens exceed the model's context of {limit}")
    start, windows = read_texts(texts.validation)
    tokenizer, documents = read_tokenizer(checkpoint), read_documents(texts.train)
    if not any(documents):
        raise EdgeError(f"{texts.train} has no text", "make the corpus again with more text")
    start_token = model_config.get("minigpt_edge", {}).get("document_start", start)
    cut = TrainingWindows(documents, tokenizer, start_token, length=length, seed=config.seed)
    data = cut.take(config.steps * config.sequences_per_step)
    return Validation(encode(tokenizer, start, [window.text for window in windows]), windows), data
