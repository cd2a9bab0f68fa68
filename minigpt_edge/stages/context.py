"""What all stages of a build share."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt_edge.stages.device import computing_on, device_setting

if TYPE_CHECKING:
    from minigpt_edge.models.base_model import BaseModel
    from minigpt_edge.recipe import Recipe
    from minigpt_edge.stages.console import Log


@dataclass(frozen=True)
class BuildContext:
    """What all stages of a build share.

    Attributes:
        work: where stages are kept.
        recipe: what is asked for.
        base: the dense model.
        log: where progress is shown.
        clock: seconds, by which speeds are measured that decide how long a build takes.
    """

    work: Path
    recipe: Recipe
    base: BaseModel
    log: Log
    clock: Callable[[], float] = time.perf_counter

    def computing(self) -> AbstractContextManager[None]:
        """On the recipe's device, which is resolved."""
        return computing_on(self.recipe.device)

    @property
    def device_setting(self) -> dict[str, str]:
        """What a stage's settings say of it."""
        return device_setting(self.recipe.device)
