"""What a build has finished before it is bundled: its stages, and the file of each target."""

from __future__ import annotations

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
    """The stages up to the model that ships; `recovered` is None without recovery, `pace` without a time."""

    text: Stage
    dense: Stage
    pruned: Stage
    recovered: Stage | None
    pace: Pace | None = None

    @property
    def checkpoint(self) -> Path:
        """The Hugging Face directory of the small model."""
        return self.recovered.path if self.recovered else self.pruned.path / CHECKPOINT


@dataclass(frozen=True)
class TargetFile:
    """A target's model file: the stage that made it, and the one that measured it."""

    target: Target
    made: Stage
    measured: Stage

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
        f16: the F16 file that the GGUF targets are made from; None without such a target.
        baselines: format and type -> the dense model measured so; empty with --no-baseline.
    """

    name: str
    context: BuildContext
    models: ModelStages
    job: Export
    f16: Stage | None
    files: tuple[TargetFile, ...]
    baselines: dict[tuple[str, str], Stage]

    @property
    def stages(self) -> list[Stage]:
        """Every stage of the build, in its order."""
        files = [stage for file in self.files for stage in (file.made, file.measured)]
        text, dense, pruned, recovered, pace = self.models
        reading, training = (pace.reading, pace.training) if pace else (None, None)
        models = [text, dense, reading, pruned, training, recovered]
        stages = [*models, self.f16, *files, *self.baselines.values()]
        return [stage for stage in stages if stage is not None]

    @property
    def key(self) -> str:
        """What tells this build from every other."""
        keys = [stage.manifest["key"] for stage in self.stages]
        return sha256_json({"name": self.name, "version": __version__, "stages": keys})
