"""Where the type of a GGUF file is chosen: of a family such as gguf-q4 the best of Q4_0, IQ4_NL, … or a mix.

Every candidate is written and scored on validation text; `choose` takes the best by quality and bytes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minigpt_edge.data.windows import read_texts
from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.errors import EdgeError
from minigpt_edge_runtime.files import write_json

if TYPE_CHECKING:
    import numpy as np

    from minigpt_edge.ship.job import Export
    from minigpt_edge_export.gguf.mixed import Choices, Trials

CHOICE_WINDOWS = 12  # validation windows on which the types of a family are compared
# Loss falls with parameters to the power -0.076 (Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1):
# what a byte is worth when two types differ in size and quality.
SCALING_EXPONENT = 0.076
MIXED = "mixed"  # among what was tried


class Choice(NamedTuple):
    """What became of a family.

    Attributes:
        type: the best single type.
        mix: the types of all matrices, as patterns, where a mix is better; empty otherwise.
        tried: name -> "bytes", "bits_per_byte", and "score": log bits per byte + SCALING_EXPONENT x log
            bytes, lower is better.
    """

    type: str
    mix: dict[str, str]
    tried: dict[str, dict[str, float]]


def check_size(job: Export, target: Target, smallest: int) -> None:
    """EdgeError if a target's smallest file has more bytes than the job allows."""
    if job.max_bytes is not None and smallest > job.max_bytes:
        raise EdgeError(
            f"the smallest {target.name} file of this model has {smallest:,} bytes, "
            f"{job.max_bytes:,} are allowed",
            "prune more, choose a target with fewer bits, or allow a larger file",
        )


def choose(
    job: Export, target: Target, source: Path, model: Path, imatrix: Mapping[str, np.ndarray] | None
) -> Choice:
    """Write a family's best file: the best score, or under a limit the best quality among what fits.

    A mix may have as many bytes as the best single type, or as the limit.

    Args:
        source: the F16 file.
        model: what to write.
        imatrix: as `quantize` takes it.

    Raises:
        EdgeError: none is as small as the limit.
    """
    from minigpt_edge.ship.grams import round_matrices
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.candidates import candidates
    from minigpt_edge_export.gguf.mixed import Trials, choices_of
    from minigpt_edge_export.gguf.quantize import quantize

    choices = choices_of(source, target)
    names = candidates(target, read_checkpoint(job.checkpoint), imatrix=bool(imatrix))
    wanted = wanted_types(job.checkpoint, names, imatrix=bool(imatrix))
    for tensor, kinds in choices.offered.items():
        wanted[tensor] |= kinds
    rounding = round_matrices(job, target.name, wanted)
    tried: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=model.parent) as name:
        folder = Path(name)
        files = {name: folder / f"{name}.gguf" for name in names}
        for name, path in files.items():
            quantize(source, path, name, imatrix=imatrix, threads=job.threads)
            rounding.improve(path)
        check_size(job, target, min(choices.smallest, *(path.stat().st_size for path in files.values())))
        for index, (name, path) in enumerate(files.items()):
            job.log.step(f"{target.name}: {name}", index, len(files))
            tried[name] = _trial(job, path)
        kind, mix = min(tried, key=lambda name: tried[name]["score"]), dict[str, str]()
        limit = job.max_bytes or int(tried[kind]["bytes"])
        if choices.groups and choices.smallest <= limit:
            mix = _mix(job, target, Trials(source, folder, imatrix, job.threads, rounding), choices, limit)
            job.log.step(f"{target.name}: {MIXED}")
            files[MIXED] = folder / f"{MIXED}.gguf"
            quantize(source, files[MIXED], kind, imatrix=imatrix, threads=job.threads, tensor_types=mix)
            rounding.improve(files[MIXED])
            tried[MIXED] = _trial(job, files[MIXED])
        by = "bits_per_byte" if job.max_bytes else "score"
        fitting = [name for name in tried if tried[name]["bytes"] <= (job.max_bytes or math.inf)]
        best = min(fitting, key=lambda name: tried[name][by])
        files[best].replace(model)
    return Choice(kind, mix, tried) if best == MIXED else Choice(best, {}, tried)


def wanted_types(checkpoint: Path, names: Iterable[str], *, imatrix: bool) -> dict[str, set[str]]:
    """GGUF tensor -> the types ("Q4_0", …) that the files of some types of a model give it."""
    from minigpt_edge_export.decoder import read_checkpoint
    from minigpt_edge_export.gguf.quantize import expected_types

    found: dict[str, set[str]] = {}
    for name in names:
        for tensor, kind in expected_types(read_checkpoint(checkpoint), name, imatrix=imatrix).items():
            found.setdefault(tensor, set()).add(kind)
    return found


def _mix(job: Export, target: Target, trials: Trials, choices: Choices, limit: int) -> dict[str, str]:
    """The mix of the least divergence from the checkpoint within the limit, as patterns."""
    from minigpt_edge_export.gguf.mixed import measure_costs, patterns, within
    from minigpt_edge_export.verify import verify_logits

    reference = job.reference()
    costs = measure_costs(
        trials,
        choices,
        lambda model: verify_logits(model, reference, job.threads).kl_mean,
        on_progress=partial(job.log.step, f"{target.name}: types of single matrices"),
    )
    return patterns(within(choices, costs, limit))


def _trial(job: Export, model: Path) -> dict[str, float]:
    """Bytes, quality on the first validation windows, and score of a candidate."""
    from minigpt_edge_runtime.bench.fresh import run_fresh

    content = read_texts(job.text.path / "validation.texts.json").content(CHOICE_WINDOWS)
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts.json"
        write_json(texts, content)
        quality = run_fresh("quality", model, texts=str(texts), threads=job.threads)
    bits, size = quality["bits_per_byte"], model.stat().st_size
    score = math.log(bits) + SCALING_EXPONENT * math.log(size)
    return {"bytes": size, "bits_per_byte": bits, "score": score}
