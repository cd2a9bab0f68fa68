"""A converted model computes what the original does: beside transformers' own load, or llama.cpp's of a GGUF.

A few tokens show what is read wrongly: a lost head, a turned matrix, positions of another kind. transformers
reads the original directory by its own names and rules, block by block from disk, so that memory holds the
embedding, the head and one block, of one of the two at a time.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.models.checkpoint import load_model, read_config
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_runtime.errors import EdgeError

if TYPE_CHECKING:
    import torch

    from minigpt_edge.models.archs.base import Arch

TOKENS = (1, 32)  # sequences and their length
# Of the spread. In float32 rounding is 1e-5 of it; with one matrix of SmolLM2-135M in bfloat16, or an epsilon
# of 1e-6 in place of 1e-5, logits are off by 0.01 to 0.02.
TOLERANCE = 1e-3
# Root mean square of what llama.cpp's logits are off by, over their spread: for files with quantized tensors,
# where it rounds activations to 8 bits, and for others. SmolLM2-135M as Q4_1 is off by 0.06; with another
# theta by 0.25, with gate and up of one block exchanged by 0.35.
LLAMA_CPP_TOLERANCE = (0.15, 0.05)


def compare_with_transformers(source: Path, directory: Path, scratch: Path) -> None:
    """Compare hidden states and logits of a few tokens with those of transformers' load of the original.

    Args:
        source: the original, with config.json and weights.
        directory: the converted checkpoint.
        scratch: a folder where weights that are not stored as safetensors may be put meanwhile.

    Raises:
        EdgeError: they differ, or transformers can't read the original.
    """
    import torch

    from minigpt_edge.models.archs import load_arch

    config = read_config(directory)
    arch, ids = load_arch(config), token_ids(config["vocab_size"])
    with torch.no_grad():
        theirs = _of_transformers(source, arch, ids, scratch)
        ours = _of_checkpoint(directory, arch, ids)
    if not theirs[-1].isfinite().all():
        raise EdgeError(
            f"{source} computes NaN or infinity: its weights are damaged", "download or copy it again"
        )
    names = ["the embedding", *(f"block {index}" for index in range(len(ours) - 2)), "the logits"]
    differ = [name for name, a, b in zip(names, ours, theirs, strict=True) if not distance(a, b) <= TOLERANCE]
    if "the logits" in differ:
        gap, spread = float((ours[-1] - theirs[-1]).abs().max()), float(theirs[-1].std())
        raise EdgeError(
            f"{source} is not read as transformers reads it: logits differ by {gap:.2g} where their spread "
            f"is {spread:.2g}, and {differ[0]} is the first that differs",
            "something in its config.json or weights is not known here: use another model of the family, "
            "or save it anew with AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)",
        )


def compare_with_llama_cpp(gguf: Path, directory: Path) -> None:
    """Compare logits of a few tokens with those of llama.cpp, which a GGUF file is made for.

    Raises:
        EdgeError: they differ by more than llama.cpp's rounding, or it can't run the file.
    """
    import numpy as np
    import torch

    from minigpt_edge.models.archs import load_arch
    from minigpt_edge_runtime.engines.open import open_engine
    from minigpt_edge_runtime.formats.gguf_header import read_header

    config = read_config(directory)
    ids = token_ids(config["vocab_size"])
    with torch.no_grad():
        ours = _of_checkpoint(directory, load_arch(config), ids)[-1][0]
    with open_engine(gguf, ids.shape[1], torch.get_num_threads(), logits_all=True) as engine:
        theirs = torch.from_numpy(np.concatenate(list(engine.score(ids[0].tolist()))))
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (ours, theirs))
    off = float((ours - theirs).square().mean().sqrt() / theirs.std()) if ours.shape == theirs.shape else 1.0
    most = LLAMA_CPP_TOLERANCE[read_header(gguf).types().keys() <= {"F32", "F16", "BF16"}]
    if not off <= most:
        raise EdgeError(
            f"{gguf} is not read as llama.cpp reads it: logits are off by {off:.2g} of their spread, where "
            f"rounding is at most {most}",
            "give the Hugging Face directory that the file was made from",
        )


def token_ids(rows: int) -> torch.Tensor:
    """The ids that are compared on, int64 of the shape TOKENS, below `rows`."""
    import numpy as np
    import torch

    return torch.from_numpy(np.random.default_rng(0).integers(0, rows, TOKENS))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the spread; NaN, which is no distance, where either has it."""
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.std().clamp_min(1e-30))


def _of_checkpoint(directory: Path, arch: Arch, ids: torch.Tensor) -> list[torch.Tensor]:
    """Embedded tokens, hidden states after every block, and logits, as calibration computes them."""
    from minigpt_edge.models.forward import head_of
    from minigpt_edge.models.resident import resident

    model: Any = load_model(directory, lazy=True)
    hidden = arch.embed(model, ids)
    position = arch.positions(model, hidden)
    _check_positions(directory, position)
    states = [hidden]
    for block in arch.blocks(model):
        with resident(block):
            states.append(arch.forward(block, states[-1], position))
    read, weight = head_of(model, arch.final_norm(model, states[-1]))
    return [*states, read @ weight.T]


def _check_positions(directory: Path, position: tuple[torch.Tensor, ...]) -> None:
    """EdgeError if the exporters, which compute rotary frequencies themselves, would find others."""
    import torch

    if not position or (rope := read_checkpoint(directory).rope) is None:
        return
    exponents = torch.arange(0, rope.dims, 2, dtype=torch.float64) / rope.dims
    frequencies = rope.theta**-exponents / torch.tensor(rope.factors or 1.0).double() / rope.scale
    angles = torch.arange(position[0].shape[-2])[:, None] * frequencies
    if not torch.allclose(angles.cos(), position[0][0, :, : rope.dims // 2].double(), atol=1e-4):
        raise EdgeError(
            f"{directory / 'config.json'}: transformers computes other rotary positions than these settings "
            "would have in a file",
            "known types of rotary positions: default, linear, llama3",
        )


def _of_transformers(source: Path, arch: Arch, ids: torch.Tensor, scratch: Path) -> list[torch.Tensor]:
    """The same by transformers' classes and own load of the original, in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    states: list[torch.Tensor] = []
    with quiet(), tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            config = AutoConfig.from_pretrained(str(source), local_files_only=True)
            with torch.device("meta"), no_init_weights():
                empty = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(source),
                config=config,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                device_map=_places(empty, arch.blocks_path),
                offload_folder=folder,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and what it uses raise many kinds
            raise EdgeError(
                f"transformers can't read {source} ({in_short(error)})", "copy or save the model again"
            ) from error
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise EdgeError(
                f"transformers finds no {missing[0]} in {source} and would draw it at random "
                f"({len(missing)} such weights)",
                "save the model again with save_pretrained",
            )
        blocks = model.get_submodule(arch.blocks_path)
        blocks[0].register_forward_pre_hook(lambda _, given: states.append(given[0]))
        for block in blocks:
            block.register_forward_hook(
                lambda _, __, out: states.append(out if torch.is_tensor(out) else out[0])
            )
        logits = model.eval()(input_ids=ids, use_cache=False).logits
    return [*states, logits]


def _places(model: Any, blocks: str, path: str = "") -> dict[str, str]:
    """For every module but those that hold others: blocks stay on disk."""
    places: dict[str, str] = {}
    for name, child in model.named_children():
        here = f"{path}{name}"
        if here == blocks:
            places |= {f"{here}.{index}": "disk" for index in range(len(child))}
        elif blocks.startswith(f"{here}."):
            places |= _places(child, blocks, f"{here}.")
        else:
            places[here] = "cpu"
    return places


def in_short(error: Exception) -> str:
    """What an error says, short enough for a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and progress bars of transformers, accelerate and peft; what is wrong we say."""
    from transformers.utils import logging as theirs

    loud: list[Any] = [logging.getLogger("accelerate"), theirs.get_logger("transformers")]
    levels, bars = [logger.level for logger in loud], theirs.is_progress_bar_enabled()
    for logger in loud:
        logger.setLevel(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
        if bars:
            theirs.enable_progress_bar()
