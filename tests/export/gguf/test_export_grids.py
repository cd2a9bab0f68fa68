from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ggml_decode import ggml_decoded, quantized_tensors
from safetensors.numpy import load_file, save_file
from tiny_llama import Checkpoint

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.grids import GRIDS, Grid, find_codes
from minigpt_edge_export.gguf.layout import layout_of, load_tensor, tensors_of
from minigpt_edge_export.gguf.quantize import matrices_in, quantize
from minigpt_edge_export.gguf.rounding import Rounding
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.targets import QUANTIZATIONS

BLOCKS = [(256, 4, 2), (96, 2, 1)]


def random_matrix(grid: Grid, rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, len(grid.levels), (rows, columns)).astype(np.uint8)
    codes[1] = len(grid.levels) // 2  # one level alone, and not the largest
    scales = rng.normal(0, 0.01, (rows, columns // grid.block)).astype(np.float16)
    scales[2, 0] = 0
    return codes, scales


@pytest.mark.parametrize("name", GRIDS)
def test_bytes_are_what_llama_cpp_reads(name: str) -> None:
    grid = GRIDS[name]
    codes, scales = random_matrix(grid, 5, 4 * grid.block)
    data, values = grid.encode(codes, scales), grid.decode(codes, scales)
    assert np.array_equal(ggml_decoded(name, data, values.size).reshape(values.shape), values)


@pytest.mark.parametrize("name", GRIDS)
def test_a_matrix_on_a_grid_is_found_again(name: str) -> None:
    grid = GRIDS[name]
    values = grid.decode(*random_matrix(grid, 200, 2 * grid.block))
    found = find_codes(values, grid)
    assert found is not None
    assert np.array_equal(grid.decode(*found), values)
    off = values.copy()
    off[-1, -1] += 1e-4 * np.abs(values).max()
    assert find_codes(off, grid) is None
    assert find_codes(values[:, :-1], grid) is None
    assert find_codes(np.random.default_rng(1).normal(size=values.shape).astype(np.float32), grid) is None


@pytest.mark.parametrize("name", [name for name in GRIDS if name.lower() in QUANTIZATIONS])
def test_a_file_holds_the_very_numbers_of_a_checkpoint_on_its_grid(
    make: Callable[..., Checkpoint], tmp_path: Path, name: str
) -> None:
    grid, checkpoint = GRIDS[name], Path(shutil.copytree(make(BLOCKS).path, tmp_path / "checkpoint"))
    weights, decoder = load_file(checkpoint / "model.safetensors"), read_checkpoint(checkpoint)
    trained = [decoder.source_name(matrix) for matrix in matrices_in(decoder, name)]
    # in the file of two bits FFN outputs have four, and so have rows of 32
    assert len(trained) == (11 if name == "Q2_0" else 14)
    for seed, key in enumerate(trained):
        weights[key] = grid.decode(*random_matrix(grid, *weights[key].shape, seed=seed))
    save_file(weights, checkpoint / "model.safetensors")
    decoder, source = read_checkpoint(checkpoint), tmp_path / "f16.gguf"
    write_gguf(decoder, source)
    quantize(source, tmp_path / "usual.gguf", name.lower(), threads=1)
    shutil.copyfile(tmp_path / "usual.gguf", tmp_path / "exact.gguf")
    Rounding(decoder).improve(tmp_path / "exact.gguf")
    layout = layout_of(decoder)
    contents, equal = tensors_of(decoder, layout), dict.fromkeys(("usual", "exact"), 0)
    for file in equal:
        for tensor, held in quantized_tensors(tmp_path / f"{file}.gguf").values():
            if tensor.type == name and tensor.name.startswith("blk."):
                values = load_tensor(decoder, layout, tensor.name, contents[tensor.name])
                equal[file] += np.array_equal(held, values)
    assert equal["exact"] == len(trained) > equal["usual"]
