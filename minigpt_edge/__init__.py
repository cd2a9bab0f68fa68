"""Turns a pretrained GPT-like model and a domain's text into a small model that runs offline.

The Python API is `build`, `evaluate` and `load`. Importing this package imports neither torch nor numpy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigpt_edge_runtime import __version__, load

if TYPE_CHECKING:
    from pathlib import Path

    from minigpt_edge.evaluation.results import Evaluation
    from minigpt_edge.pipeline import Built

__all__ = ["__version__", "build", "evaluate", "load"]


def build(
    domain: str | None = None,
    target: str | Sequence[str] = "gguf-q4",
    *,
    quiet: bool = False,
    **options: Any,
) -> Built:
    """Make a small model for a domain, as `minigpt-edge build` does; finished stages are cached.

    Args:
        domain: a known domain; None with `corpus`.
        target: what to export; several targets in a list.
        quiet: don't log to stderr.
        options: those of the command with underscores, such as `corpus`, `model`, `out`, `sparsity=0.3`,
            `max_size="40MB"`, `time="1h"`, `method`, `no_recover=True`, `threads`, `device` or
            `offline`.

    Returns:
        The bundle's directory, the checkpoint of the small model, the report (`to_json()` gives the content
        of report.json) and whether all of it was there already.

    Raises:
        TypeError: there is no such option.
        UsageError: an option names something that does not exist, or two contradict each other.
        EdgeError: a stage failed; finished stages stay.
    """
    from minigpt_edge import pipeline
    from minigpt_edge.recipe import recipe_of
    from minigpt_edge.stages import parallel
    from minigpt_edge.stages.console import Log
    from minigpt_edge_runtime.engines.spin import spin_briefly
    from minigpt_edge_runtime.errors import UsageError

    spin_briefly(os.environ)
    if parallel.started() > 1:
        raise UsageError("minigpt_edge.build works in one process", "launch the command `minigpt-edge build`")
    targets = [target] if isinstance(target, str) else target
    recipe = recipe_of(domain=domain, targets=targets, **options)
    given = {"domain": domain, "target": target, **options}
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
    with Log(quiet=quiet) as log:
        return pipeline.build(recipe, log, command=f"minigpt_edge.build({arguments})")


def evaluate(
    model: Path | str, tasks: str | Sequence[str] = (), *, quiet: bool = False, **options: Any
) -> Evaluation:
    """Score a model on texts and questions, as `minigpt-edge evaluate` does.

    Args:
        model: a bundle's directory or zip file, a .gguf or .onnx file, or a checkpoint directory.
        tasks: names of tasks, one or several, such as "text", "completion", "mcq", "text:games" or "boolq";
            by default the domain's text, completions and, where there are any, questions.
        quiet: don't log to stderr.
        options: those of the command: `domain`, `file`, `base_model`, `limit`, `beside_base`,
            `paper_scoring`, `source`, `threads`, `device`, `offline` and `no_verify`.

    Returns:
        What the command prints as JSON.

    Raises:
        TypeError: there is no such option.
        UsageError: a task is unknown, or needs a domain and the model names none.
        EdgeError: the model or the data can't be had, or computing failed.
    """
    from minigpt_edge.evaluation import run
    from minigpt_edge.stages.console import Log

    names = [tasks] if isinstance(tasks, str) else tasks
    with Log(quiet=quiet) as log:
        return run.evaluate(model, names, run.Options(**options), log)
