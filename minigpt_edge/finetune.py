"""Recovery: full or LoRA fine-tuning of a shrunk model on the training split, resumable to the same bits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge import parallel
from minigpt_edge.evaluate.perplexity import (
    check_context,
    encode,
    read_texts,
    read_tokenizer,
    sum_nll,
    summary,
)
from minigpt_edge.packing import pack, read_documents
from minigpt_edge.training_checkpoint import (
    PROGRESS,
    last_checkpoint,
    load_weights,
    save_weights,
    work_folder,
)
from minigpt_edge.training_settings import MICRO_TOKENS, Settings, State
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import need_space, read_json, sha256_file, write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from minigpt_edge.fast_llama import Parts
    from minigpt_edge.lora import Adapter
    from minigpt_edge.teacher import Teacher

    Compiled = tuple[Parts, Parts | None]

BEST = "best.safetensors"
STEP_TOKENS = 2048
LR = 6e-4
LORA_LR = 2e-3
COMPILE_FROM = 60_000  # tokens from which compiling (about 40 s) pays

Progress = Callable[[dict[str, Any]], None]


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

    from minigpt_edge import attention
    from minigpt_edge.checkpoint import load_model
    from minigpt_edge.lora import Adapter

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
    session = _Session(
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
    return [checkpoint / "config.json", checkpoint / "tokenizer.json", *weights, train, validation, *taught]


def _read_texts(
    checkpoint: Path, train: Path, validation: Path, settings: Settings
) -> tuple[list[list[int]], list[dict[str, Any]], np.ndarray]:
    """Validation windows as token ids and as records, and the packed training sequences.

    Raises:
        EdgeError: damaged input, too little text, or sequences longer than the model's context.
    """
    from minigpt_edge.checkpoint import read_config

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
    return encode(tokenizer, document_start, [w["text"] for w in windows]), windows, data


class _Session:
    """One run of `recover` once its inputs are read: evaluation, best weights, progress, the report."""

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        work: Path,
        sequences: list[list[int]],
        windows: list[dict[str, Any]],
        on_progress: Progress | None,
        begun: float,
        checkpoint_seconds: float,
        teacher: nn.Module | None,
        adapter: Adapter | None,
        checkpoint: Path,
    ) -> None:
        from minigpt_edge.flops import matmul_flops

        self.model, self.settings, self.work = model, settings, work
        self.sequences, self.windows = sequences, windows
        self.tell: Progress = on_progress or (lambda entry: None)
        self.begun, self.checkpoint_seconds = begun, checkpoint_seconds
        self.stopped = "tokens"
        self.compiled = False
        self.teacher, self.adapter, self.checkpoint = teacher, adapter, checkpoint
        self.trained = adapter.trained if adapter else model  # what training checkpoints hold
        self.matmul = matmul_flops()
        self.state = State([], float("inf"), 0, 0, 0.0, 0.0)
        self.earlier_seconds = 0.0

    def run(self, data: Any, before: dict[str, float] | None) -> None:
        """Evaluate, then train from the beginning or the last whole checkpoint."""
        from minigpt_edge.trainer import compile_cache, train

        resumed = parallel.told(None if parallel.rank() else last_checkpoint(self.work))
        if resumed:
            self.state = State(**read_json(resumed / PROGRESS))
            self.earlier_seconds = self.state.seconds
            self.tell({"message": f"going on after step {self.state.history[-1]['step']}"})
        else:
            self.state.history.append({"step": 0, "tokens": 0})
            if self.evaluate(before):
                return
        with compile_cache(self.work / "compiled"):
            train(self, data, self._parts(), resumed)

    def _parts(self) -> Compiled | None:
        """The compiled blocks of `fast_llama`; None, transformers' own, where that fails or does not pay."""
        from minigpt_edge import fast_llama

        settings = self.settings
        if settings.tokens < COMPILE_FROM:
            return None
        reason = "LoRA runs in peft's layers" if self.adapter else fast_llama.check_supported(self.model)
        if parallel.wants_shards():
            reason = "FSDP needs transformers' blocks"
        try:
            if reason is None:
                self.tell({"message": "compiling the training step (about 40 seconds)"})
                shape = settings.micro_batch, settings.sequence_length
                student = fast_llama.compiled_parts(self.model, *shape)
                taught = (
                    fast_llama.compiled_parts(self.teacher, *shape, training=False) if self.teacher else None
                )
                self.compiled = True
                return student, taught
        except fast_llama.CompileError as error:
            reason = str(error)
        self.tell({"message": f"training step not compiled, so it takes longer: {reason}"})
        return None

    def evaluate(self, scores: dict[str, float] | None = None) -> bool:
        """Score the validation windows into the newest history entry; True if training should stop.

        The weights are kept where they are the best so far. Scores that are known are not measured again.
        """
        scores = scores or self._scores()
        entry = self.state.history[-1]
        entry |= {key: scores[key] for key in ("bits_per_byte", "perplexity_per_base_token")}
        self.tell(entry)
        reached = self.settings.until_perplexity
        self.state.worse += 1
        if scores["bits_per_byte"] < self.state.best or not (self.work / BEST).exists():
            self.state.best, self.state.best_step, self.state.worse = (
                scores["bits_per_byte"],
                entry["step"],
                0,
            )
            save_weights(self.trained, self.work / BEST)
        if reached is not None and scores["perplexity_per_base_token"] <= reached:
            self.stopped = "perplexity reached"
        elif self.state.worse >= self.settings.patience:
            self.stopped = "no improvement"
        return self.stopped != "tokens"

    def _scores(self) -> dict[str, float]:
        import torch

        from minigpt_edge import attention
        from minigpt_edge.checkpoint import load_model
        from minigpt_edge.sharding import is_sharded, put_weight, whole_weights

        model = self.model
        if is_sharded(model):  # for this, each process has a copy that is whole
            model = load_model(self.checkpoint)
            attention.use_in(model)
            for name, tensor in whole_weights(self.model).items():
                put_weight(model, name, tensor)
        nll = torch.tensor(sum_nll(model, parallel.share(self.sequences)), dtype=torch.float64)
        parallel.add_up(nll)
        return summary(float(nll), self.windows)

    def publish(self, out: Path, result: dict[str, Any]) -> None:
        """Write the best model and the report into `out`, and delete the training checkpoints."""
        from minigpt_edge.checkpoint import load_model, save_model

        model, trained = self.model, self.trained
        if parallel.wants_shards():  # the file takes a model that is whole
            model = trained = load_model(self.checkpoint)
        load_weights(trained, self.work / BEST)
        if self.adapter:
            self.adapter.merge()
        save_model(model, self.checkpoint, out)
        write_json(out / PROGRESS, result)
        shutil.rmtree(self.work)

    def elapsed(self) -> float:
        """Seconds spent on this recovery, interrupted runs included."""
        return self.earlier_seconds + time.monotonic() - self.begun

    def save(self, folder: Path) -> None:
        """Mark a training checkpoint as whole, and delete the ones before it."""
        parallel.told("every process has written its part")
        if parallel.rank():
            return
        self.state.seconds = self.elapsed()
        write_json(folder / PROGRESS, asdict(self.state))
        for other in self.work.glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other)

    def result(self) -> dict[str, Any]:
        """What `recover` returns."""
        from minigpt_edge.flops import training_flops

        history = self.state.history
        tokens = history[-1]["tokens"]
        rate = tokens / self.state.training_seconds if self.state.training_seconds else 0.0
        scored = [entry for entry in history if "bits_per_byte" in entry]
        best = next(entry for entry in scored if entry["step"] == self.state.best_step)
        keys = ("step", "bits_per_byte", "perplexity_per_base_token")
        work = training_flops(self.model, self.settings.sequence_length)
        work += self.adapter.flops if self.adapter else 0.0
        if self.teacher is not None:  # a forward pass is a third of what training takes
            work += training_flops(self.teacher, self.settings.sequence_length) / 3
        return {
            "tokens": tokens,
            "seconds": self.elapsed(),
            "training_seconds": self.state.training_seconds,
            "tokens_per_second": rate,
            "matmul_flops": self.matmul,
            "matmul_fraction": rate * work / self.matmul,
            "compiled": self.compiled,
            "teacher_share": self.settings.teacher_share,
            "lora_rank": self.settings.lora_rank,
            "stopped": self.stopped,
            "best_step": self.state.best_step,
            "before": {key: scored[0][key] for key in keys},
            "after": {key: best[key] for key in keys},
            "history": history,
        }
