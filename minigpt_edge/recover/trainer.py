"""The Hugging Face Trainer, made quiet and fast for recovery: our forward, loss, order and checkpoints.

Import this module inside functions: it needs transformers at its head to subclass it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.utils.data import Dataset  # noqa: TID253
from transformers import (  # noqa: TID253
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from minigpt_edge.models.checkpoint import WEIGHTS
from minigpt_edge.models.chunked_loss import SoftLabels
from minigpt_edge.recover.objective import Objective
from minigpt_edge.recover.sharding import is_sharded, load_optimizer, save_optimizer, shard
from minigpt_edge.recover.training_checkpoint import load_weights, save_weights
from minigpt_edge.stages import parallel
from minigpt_edge.stages.device import CPU, here
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import numpy as np

    from minigpt_edge.recover.session import Session

WARM_UP = 0.05  # share of the steps
HISTORY = 300  # About so many steps are logged; a loss is the mean since the last one.


class RecoveryTrainer(Trainer):
    """Trainer of an `Objective`, alone or with other processes; the data come in their order."""

    def __init__(self, session: Session, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.session = session
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Mean loss in nats of predicting every id of inputs["ids"] [batch, length + 1] but the first."""
        loss: Tensor = model(here(inputs["ids"]), self._soft(inputs["numbers"]))
        if not math.isfinite(loss.item()):
            raise EdgeError(
                f"recovery diverged at step {self.state.global_step + 1}: the loss is not a number",
                "use a smaller learning rate",
            )
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass, on the file's grid where there is one."""
        with self.session.at_step(self.state.global_step):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss.to(self.args.device)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does, but nothing is moved: the model is where it is computed on."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        pass

    def _soft(self, numbers: Tensor) -> SoftLabels | None:
        """What the teacher says of these consecutive windows; None beyond those that it teaches."""
        lessons, last = self.session.lessons, int(numbers[-1]) + 1
        if lessons is None or last > self.session.taught:
            return None
        share = self.session.config.teacher_share * (1 - self.state.global_step / self.state.max_steps)
        return SoftLabels(lessons.hidden(int(numbers[0]), last), lessons.head, share)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, embedding and head with a rate of their own."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            trained = [p for p in self.session.model.parameters() if p.requires_grad]
            tables = {id(table) for table in self.session.tables}
            rate = self.args.learning_rate * self.session.config.embedding_rate
            groups: list[dict[str, Any]] = [
                {"params": [p for p in trained if id(p) not in tables]},
                {"params": [p for p in trained if id(p) in tables], "lr": rate},
            ]
            self.optimizer = kind([group for group in groups if group["params"]], **options)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.session.trained, folder / WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if is_sharded(self.session.model):
            save_optimizer(self, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and is_sharded(self.session.model):
            load_optimizer(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.session.trained, Path(resume_from_checkpoint) / WEIGHTS)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class _Windows(Dataset[dict[str, Tensor]]):
    """Training windows [n, length + 1] with their numbers."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"ids": torch.from_numpy(self.ids[number]).long(), "numbers": torch.tensor(number, device=CPU)}


class Follow(TrainerCallback):
    """Keeps the session's history, evaluates and saves when it is time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.zeros: list[tuple[Tensor, Tensor]] = []
        if session.config.keep_zeros:
            own = {id(table) for table in session.tables}
            matrices = (p for p in session.model.parameters() if p.dim() > 1 and id(p) not in own)
            self.zeros = [(p, p.data == 0) for p in matrices]
        self.saved = time.monotonic()
        self.step_begun = self.unlogged_seconds = 0.0
        self.unlogged = 0
        steps, evaluations = session.config.steps, session.config.evaluations
        self.every = max(1, steps // HISTORY)
        self.evaluate_at = {round(steps * (i + 1) / evaluations) for i in range(evaluations)}
        self.fork_at = session.config.plain_steps if session.config.fork else None

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for weight, zero in self.zeros:
            weight.data.masked_fill_(zero, 0)

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_begun = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seconds, step = time.monotonic() - self.step_begun, state.global_step
        per_step = self.session.config.sequences_per_step * self.session.config.sequence_length
        self.session.state.training_seconds += seconds
        self.unlogged += 1
        self.unlogged_seconds += seconds
        if step % self.every and step not in self.evaluate_at and step != self.fork_at:
            return
        speed = self.unlogged * per_step / self.unlogged_seconds
        self.session.state.history.append(
            {"step": step, "tokens": step * per_step, "tokens_per_second": speed}
        )
        self.unlogged, self.unlogged_seconds = 0, 0.0
        control.should_log = True

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:  # the Trainer's closing summary
            return
        session, step = self.session, state.global_step
        entry = session.state.history[-1]
        entry |= {"loss": float(logs["loss"]), "lr": float(logs["learning_rate"])}
        remaining = session.config.steps - step
        eta = remaining * session.state.training_seconds / step
        session.report({**entry, "steps": session.config.steps, "eta_seconds": eta})
        if step in self.evaluate_at and session.evaluate():
            control.should_training_stop = True
            return
        due = time.monotonic() - self.saved >= session.config.checkpoint_seconds
        if remaining and (step == self.fork_at or parallel.broadcast(due)):
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self.session.grid and not parallel.rank():
            self.session.grid.save(folder)
        self.session.save(folder)
        self.saved = time.monotonic()


@contextmanager
def compile_cache(folder: Path) -> Iterator[None]:
    """Keep what torch.compile writes inside `folder`, unless the user chose a place."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    chosen = os.environ.get(name)
    os.environ[name] = chosen or str(folder)
    try:
        yield
    finally:
        if chosen is None:
            del os.environ[name]


def train(session: Session, data: np.ndarray, resumed: Path | None) -> None:
    """Train the session's model on `data` [sequences, length + 1], from a training checkpoint if given."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    with compile_cache(session.work / "compiled"):
        objective = Objective(session.model, session.compile_blocks())
        arguments = _arguments(session)
        if parallel.wants_shards():
            shard(objective)
        with parallel.without_accelerates_shards():
            trainer = RecoveryTrainer(
                session,
                model=objective,
                args=arguments,
                train_dataset=_Windows(data),
                data_collator=torch.utils.data.default_collate,
                callbacks=[Follow(session)],
            )
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)


def _arguments(session: Session) -> TrainingArguments:
    config = session.config
    return TrainingArguments(
        output_dir=str(session.work),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.sequences_per_step // config.processes // config.micro_batch,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(max(1, round(WARM_UP * config.steps)), config.steps - 1),
        weight_decay=0.0,
        adam_beta2=config.beta2,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        seed=config.seed,
        use_cpu=True,  # of what is the Trainer's own; our model is where it is computed on
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
