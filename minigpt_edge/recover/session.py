"""One run of recovery once its inputs are read: evaluation, best weights, progress and the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.evaluation.perplexity import sum_nll, summary
from minigpt_edge.recover.config import Progress, RecoverConfig
from minigpt_edge.recover.training_checkpoint import (
    BEST,
    PROGRESS,
    State,
    keep_fork,
    load_weights,
    save_weights,
)
from minigpt_edge.stages import parallel
from minigpt_edge.stages.device import CPU
from minigpt_edge_runtime.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn

    from minigpt_edge.models.dense_states import DenseStates
    from minigpt_edge.recover.fast_llama import Parts
    from minigpt_edge.recover.lora import Adapter
    from minigpt_edge.recover.on_grid import OnGrid
    from minigpt_edge_runtime.scoring.held_out import Window

COMPILE_FROM = 60_000  # tokens from which compiling (about 40 s) pays
SCORES = ("bits_per_byte", "perplexity_per_base_token")


def compiles(config: RecoverConfig) -> bool:
    """Whether a recovery is long enough to compile for."""
    return config.tokens >= COMPILE_FROM


@dataclass(frozen=True)
class Validation:
    """The validation windows, as token ids too."""

    sequences: list[list[int]]
    windows: list[Window]


@dataclass
class Session:
    """What a run of `recover` works with and how far it is.

    Attributes:
        checkpoint: directory of the model that is trained.
        work: folder of the training checkpoints and the best weights.
        lessons: what the teacher says of the first windows.
        grid: rounds the model to what its file will hold.
        report: see `recover`'s `on_progress`.
        begun: by the monotonic clock.
        matmul: operations per second that this machine reaches, see `flops.matmul_flops`.
        earlier_seconds: spent before an interruption.
        stopped: why training ended: "tokens", "perplexity reached" or "no improvement".
        compiled: whether the training step was.
    """

    config: RecoverConfig
    checkpoint: Path
    work: Path
    model: nn.Module
    lessons: DenseStates | None
    adapter: Adapter | None
    grid: OnGrid | None
    validation: Validation
    report: Progress
    begun: float
    matmul: float
    state: State = field(default_factory=State)
    earlier_seconds: float = 0.0
    stopped: str = "tokens"
    compiled: bool = False

    @property
    def trained(self) -> nn.Module:
        """What training checkpoints hold."""
        return self.adapter.trained if self.adapter else self.model

    @property
    def tables(self) -> list[Any]:
        """The weights of embedding and head, which may be one."""
        model: Any = self.model
        return [part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())]

    @property
    def taught(self) -> int:
        """How many of the first windows have a teacher: whole steps of them."""
        if self.lessons is None or self.config.teacher is None:
            return 0
        count, step = min(len(self.lessons.ids), self.config.teacher.windows), self.config.sequences_per_step
        return count // step * step

    def begin(self, before: dict[str, float] | None) -> bool:
        """Evaluate the model as it is; True if there is no need to train it."""
        self.state.history.append({"step": 0, "tokens": 0})
        return self.evaluate(before)

    def resume(self, folder: Path) -> None:
        """Take up the state of a training checkpoint."""
        self.state = State(**read_json(folder / PROGRESS))
        self.earlier_seconds = self.state.seconds
        if self.grid:
            self.grid.load(folder)
        self.report({"message": f"going on after step {self.state.history[-1]['step']}"})

    def compile_blocks(self) -> Parts | None:
        """The compiled blocks of `fast_llama`; None, transformers' own, where that fails or does not pay."""
        from minigpt_edge.recover import fast_llama

        if not compiles(self.config):
            return None
        reason = "LoRA runs in peft's layers" if self.adapter else fast_llama.check_supported(self.model)
        if parallel.wants_shards():
            reason = "FSDP needs transformers' blocks"
        try:
            if reason is None:
                self.report({"message": "compiling the training step (about 40 seconds)"})
                shape = self.config.micro_batch, self.config.sequence_length
                parts = fast_llama.compiled_parts(self.model, *shape)
                self.compiled = True
                return parts
        except fast_llama.CompileError as error:
            reason = str(error)
        self.report({"message": f"training step not compiled, so it takes longer: {reason}"})
        return None

    @contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """The model as it is trained in a step (from 0): on the grid, from the first of its steps on."""
        if self.grid is None or step < self.config.plain_steps:
            yield
            return
        if step == self.config.plain_steps:  # what was best before is on no grid
            self.state.best, self.state.worse = float("inf"), 0
        self.grid.follow(step - self.config.plain_steps)
        with self.grid.rounded():
            yield

    def evaluate(self, scores: dict[str, float] | None = None) -> bool:
        """Score the validation windows into the newest history entry; True if training should stop.

        The weights are saved where they are the best so far. Scores that are known are not measured again.
        """
        last = self.state.history[-1]["step"] - 1
        with self.at_step(last):
            return self._evaluate(scores)

    def _evaluate(self, scores: dict[str, float] | None) -> bool:
        scores, state = scores or self._scores(), self.state
        entry = state.history[-1]
        entry |= {key: scores[key] for key in SCORES}
        self.report(entry)
        enough = self.config.until_perplexity
        state.worse += 1
        if scores["bits_per_byte"] < state.best or not (self.work / BEST).exists():
            state.best, state.best_step, state.worse = scores["bits_per_byte"], entry["step"], 0
            save_weights(self.trained, self.work / BEST)
        if enough is not None and scores["perplexity_per_base_token"] <= enough:
            self.stopped = "perplexity reached"
        elif state.worse >= self.config.patience:
            self.stopped = "no improvement"
        return self.stopped != "tokens"

    def _scores(self) -> dict[str, float]:
        import torch

        from minigpt_edge.models.forward import load_fast
        from minigpt_edge.recover.sharding import is_sharded, put_weight, whole_weights

        model = self.model
        if is_sharded(model):  # each process scores with a whole copy
            model = load_fast(self.checkpoint)
            for name, tensor in whole_weights(self.model).items():
                put_weight(model, name, tensor)
        summed = sum_nll(model, parallel.share(self.validation.sequences))
        nll = torch.tensor(summed, dtype=torch.float64, device=CPU)
        parallel.all_reduce(nll)
        return summary(float(nll), self.validation.windows)

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
        fork = self.config.fork
        if fork and not fork.exists() and self.state.history[-1]["step"] == self.config.plain_steps:
            keep_fork(folder, self.work, fork)

    def result(self) -> dict[str, Any]:
        """What `recover` returns."""
        from minigpt_edge.recover.flops import training_flops

        state, length = self.state, self.config.sequence_length
        tokens = state.history[-1]["tokens"]
        grid = self.config.grid if state.best_step > self.config.plain_steps else None
        rate = tokens / state.training_seconds if state.training_seconds else 0.0
        scored = [entry for entry in state.history if "bits_per_byte" in entry]
        best = next(entry for entry in scored if entry["step"] == state.best_step)
        work = training_flops(self.model, length)
        work += self.adapter.flops if self.adapter else 0.0
        before, after = ({key: entry[key] for key in ("step", *SCORES)} for entry in (scored[0], best))
        return {
            "tokens": tokens,
            "seconds": self.elapsed(),
            "training_seconds": state.training_seconds,
            "tokens_per_second": rate,
            "matmul_flops": self.matmul,
            "matmul_fraction": rate * work / self.matmul,
            "compiled": self.compiled,
            "grid": grid.kind if grid else None,
            "teacher_share": self.config.teacher_share,
            "taught_tokens": min(self.taught * length, tokens),
            "lora_rank": self.config.lora_rank,
            "stopped": self.stopped,
            "best_step": state.best_step,
            "before": before,
            "after": after,
            "history": state.history,
        }
