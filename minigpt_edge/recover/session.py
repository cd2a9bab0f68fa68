"""One run of recovery: evaluation, best weights, progress and the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.evaluation.perplexity import sum_nll, summary
from minigpt_edge.recover.settings import Settings, State
from minigpt_edge.recover.training_checkpoint import (
    PROGRESS,
    last_checkpoint,
    load_weights,
    save_weights,
)
from minigpt_edge.stages import parallel
from minigpt_edge_runtime.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from minigpt_edge.recover.fast_llama import Compiled
    from minigpt_edge.recover.lora import Adapter
    from minigpt_edge_runtime.scoring.held_out import Window


BEST = "best.safetensors"
COMPILE_FROM = 60_000  # tokens from which compiling (about 40 s) pays

Progress = Callable[[dict[str, Any]], None]


class Session:
    """One run of `recover` once its inputs are read: evaluation, best weights, progress, the report."""

    def __init__(
        self,
        model: nn.Module,
        settings: Settings,
        work: Path,
        sequences: list[list[int]],
        windows: list[Window],
        on_progress: Progress | None,
        begun: float,
        checkpoint_seconds: float,
        teacher: nn.Module | None,
        adapter: Adapter | None,
        checkpoint: Path,
    ) -> None:
        from minigpt_edge.recover.flops import matmul_flops

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
        from minigpt_edge.recover.trainer import compile_cache, train

        resumed = parallel.broadcast(None if parallel.rank() else last_checkpoint(self.work))
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
        from minigpt_edge.recover import fast_llama

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

        from minigpt_edge.models import attention
        from minigpt_edge.models.checkpoint import load_model
        from minigpt_edge.recover.sharding import is_sharded, put_weight, whole_weights

        model = self.model
        if is_sharded(model):  # for this, each process has a copy that is whole
            model = load_model(self.checkpoint)
            attention.use_in(model)
            for name, tensor in whole_weights(self.model).items():
                put_weight(model, name, tensor)
        nll = torch.tensor(sum_nll(model, parallel.share(self.sequences)), dtype=torch.float64)
        parallel.all_reduce(nll)
        return summary(float(nll), self.windows)

    def publish(self, out: Path, result: dict[str, Any]) -> None:
        """Write the best model and the report into `out`, and delete the training checkpoints."""
        from minigpt_edge.models.checkpoint import load_model, save_model

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
        parallel.barrier()  # every process has written its part
        if parallel.rank():
            return
        self.state.seconds = self.elapsed()
        write_json(folder / PROGRESS, asdict(self.state))
        for other in self.work.glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other)

    def result(self) -> dict[str, Any]:
        """What `recover` returns."""
        from minigpt_edge.recover.flops import training_flops

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
