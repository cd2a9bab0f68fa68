"""What a build has finished before it is bundled: its stages, and the file of each target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minigpt_edge.pace.stage import Pace
from minigpt_edge.prune.context import CHECKPOINT
from minigpt_edge.ship.job import Export
from minigpt_edge.stages.context import BuildContext
from minigpt_edge.stages.stage import Stage
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime._version import __version__
from minigpt_edge_runtime.files import sha256_json


class ModelStages(NamedTuple):
    """The stages up to the models that ship.

    `recoveries`: name of a target -> the stage that fine-tuned its model; empty without recovery. `pace` is
    None without a time.
    """

    text: Stage
    dense: Stage
    pruned: Stage
    recoveries: Mapping[str, Stage]
    pace: Pace | None = None

    @property
    def recovered(self) -> Stage | None:
        """The recovery of the first target's model."""
        return next(iter(self.recoveries.values()), None)

    def checkpoint(self, target: str | None = None) -> Path:
        """The Hugging Face directory of a target's model; of the first target's where none is named."""
        stage = self.recoveries.get(target) if target else self.recovered
        return stage.path if stage else self.pruned.path / CHECKPOINT


@dataclass(frozen=True)
class TargetFile:
    """A target's model file: the stage that made it, the one that measured it, and what it came from."""

    target: Target
    made: Stage
    measured: Stage
    job: Export

    def name(self, bundle: str) -> str:
        """Where it lies in the bundle of that name; an ONNX model has a whole directory."""
        if self.target.format == "onnx":
            return f"{self.target.name}/model.onnx"
        return f"{bundle}-{self.made.metrics['type']}{'-mixed' * bool(self.made.metrics['mix'])}.gguf"


@dataclass(frozen=True)
class Finished:
    """All that a bundle is made of.

    Attributes:
        name: of the bundle.
        job: of the first target.
        f16: the F16 files that the GGUF targets are made from.
        baselines: format and type -> the dense model measured so; empty with --no-baseline.
    """

    name: str
    context: BuildContext
    models: ModelStages
    job: Export
    f16: tuple[Stage, ...]
    files: tuple[TargetFile, ...]
    baselines: dict[tuple[str, str], Stage]

    @property
    def stages(self) -> list[Stage]:
        """Every stage of the build, in its order."""
        files = [stage for file in self.files for stage in (file.made, file.measured)]
        text, dense, pruned, recoveries, pace = self.models
        reading, training = (pace.reading, pace.training) if pace else (None, None)
        recovered = {stage.path: stage for stage in recoveries.values()}.values()
        models = [text, dense, reading, pruned, training, *recovered]
        stages = [*models, *self.f16, *files, *self.baselines.values()]
        return [stage for stage in stages if stage is not None]

    @property
    def key(self) -> str:
        """What tells this build from every other."""
        keys = [stage.manifest["key"] for stage in self.stages]
        return sha256_json({"name": self.name, "version": __version__, "stages": keys})
