"""What GPTQ rounds by: Gram matrices of what each matrix of a block reads, by how much a token matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt_edge.prune.context import SENSITIVITY_TOKENS
from minigpt_edge.stages.device import computing_on, here
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.rounding import Rounding

if TYPE_CHECKING:
    import torch

    from minigpt_edge.models.archs.base import Arch
    from minigpt_edge.prune.weighted import WeightedGram
    from minigpt_edge.ship.job import Export
    from minigpt_edge_export.onnx.weights import Packed
    from minigpt_edge_export.targets import Precision

WINDOW = 512
_SEED = 1  # other pieces of the text than those that recovery began with


def round_matrices(job: Export, name: str, wanted: Mapping[str, set[str]]) -> Rounding:
    """A job's matrices rounded to the types that files of a target may give them.

    Args:
        name: the target's.
        wanted: tensor -> types.
    """
    rounding = Rounding(read_checkpoint(job.checkpoint), wanted, job.threads)
    if rounding.left:
        with computing_on(job.device):
            for grams in _watched(job, name):
                rounding.add(grams)
    return rounding


def pack_blocks(job: Export, name: str, precision: Precision) -> dict[str, Packed]:
    """The same for an ONNX target: the integers of all matrices of the blocks."""
    from minigpt_edge_export.onnx.gptq import pack_matrices

    decoder = read_checkpoint(job.checkpoint)
    packed: dict[str, Packed] = {}
    with computing_on(job.device):
        for grams in _watched(job, name):
            packed |= pack_matrices(decoder, precision, grams, job.threads)
    return packed


def _watched(job: Export, name: str) -> Iterator[dict[str, np.ndarray]]:
    """Block by block, with its progress shown."""
    blocks = len(read_checkpoint(job.checkpoint).blocks)
    job.log.step(f"{name}: rounding", 0, blocks)
    for done, grams in enumerate(weighted_grams(job.checkpoint, job.text.path, job.threads), 1):
        yield grams
        job.log.step(f"{name}: rounding", done, blocks)


def weighted_grams(checkpoint: Path, corpus: Path, threads: int) -> Iterator[dict[str, np.ndarray]]:
    """Block by block, the last one first.

    Args:
        checkpoint: the model that is to be rounded.
        corpus: a corpus stage; its training text is read.

    Yields:
        canonical name of each of a block's matrices ("blocks.3.down.weight", …) -> float32 [K, K], the mean
        over SENSITIVITY_TOKENS tokens that `prune.weighted` tells of.
    """
    import torch

    from minigpt_edge.models import archs
    from minigpt_edge.models.checkpoint import is_large, read_config
    from minigpt_edge.models.forward import load_fast
    from minigpt_edge.prune.backward import backward, sampled

    torch.set_num_threads(threads)
    config = read_config(checkpoint)
    arch, model = archs.load_arch(config), load_fast(checkpoint, lazy=is_large(checkpoint))
    windows = _windows(checkpoint, corpus, min(WINDOW, config["max_position_embeddings"]))
    for index, _, sums in backward(model, arch, windows, sampled(_SEED), partial(_watch, arch)):
        yield {f"blocks.{index}.{name}.weight": one.mean().cpu().numpy() for name, one in sums.items()}


def _windows(checkpoint: Path, corpus: Path, length: int) -> torch.Tensor:
    """Token ids int64 [n, length] of training text."""
    import torch

    from minigpt_edge.data.corpus import read_split
    from minigpt_edge.data.training_windows import TrainingWindows
    from minigpt_edge.data.windows import read_texts
    from minigpt_edge.models.forward import read_tokenizer

    start, _ = read_texts(corpus / "validation.texts.json")
    documents, tokenizer = read_split(corpus, "train"), read_tokenizer(checkpoint)
    cut = TrainingWindows(documents, tokenizer, start, length=length, seed=_SEED)
    return here(torch.from_numpy(cut.take(max(1, SENSITIVITY_TOKENS // length))[:, :-1]).long())


def _watch(arch: Arch, block: Any) -> dict[str, WeightedGram]:
    from minigpt_edge.prune.weighted import WeightedGram

    names = (*arch.ATTENTION_READERS, arch.ATTENTION_OUT, *arch.FFN_READERS, arch.FFN_OUT)
    return {name: WeightedGram(arch.part(block, name)) for name in names}
