"""Costs against files that llama.cpp quantized directly; choices against all that are possible."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_llama import Checkpoint, write_reference

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.mixed import Choices, Group, Trials, choices_of, measure_costs, patterns, within
from minigpt_edge_export.gguf.quantize import padded, quantize, tensor_bytes
from minigpt_edge_export.gguf.write import write_gguf
from minigpt_edge_export.targets import parse_target
from minigpt_edge_export.verify import verify_logits
from minigpt_edge_runtime.engines.open import open_engine
from minigpt_edge_runtime.formats.gguf_header import TensorInfo, read_header

BLOCKS = [(256, 4, 2), (96, 2, 1), (512, 4, 2)]  # rows of 64, 32, 96, 256, 512
TOKENS = [3, 50, 61, 72, 83, 94, 105, 116, 7, 9, 11, 200, 201, 202]


@pytest.fixture(scope="module")
def checkpoint(make: Callable[..., Checkpoint]) -> Checkpoint:
    return make(BLOCKS)


@pytest.fixture(scope="module")
def f16(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "f16.gguf"
    write_gguf(read_checkpoint(checkpoint.path), path)
    return path


@pytest.fixture(scope="module")
def imatrix(f16: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    matrices = [tensor for tensor in read_header(f16).tensors if len(tensor.shape) > 1]
    return {tensor.name: rng.lognormal(0, 1, tensor.shape[0]).astype(np.float32) for tensor in matrices}


def test_rungs_fit_the_rows(f16: Path) -> None:
    choices = choices_of(f16, parse_target("gguf-q3"))
    by_name = {
        tensor.name: list(dict.fromkeys(rung[index] for rung in group.rungs))
        for group in choices.groups
        for index, tensor in enumerate(group.tensors)
    }
    assert len(by_name) == 7 * 3 + 1
    assert by_name["token_embd.weight"] == ["iq4_nl", "q8_0"]
    assert by_name["blk.1.ffn_down.weight"] == ["iq4_nl", "q8_0"]
    assert by_name["blk.2.ffn_down.weight"] == ["q3_k", "iq4_xs", "q5_k", "q6_k", "q8_0"]
    q5 = choices_of(f16, parse_target("gguf-q5"))
    assert {kind for group in q5.groups for kind in group.rungs[0]} == {"q5_0", "q5_k"}


@pytest.mark.parametrize("family", ["gguf-q2", "gguf-q4"])
def test_sizes_are_those_of_the_files(
    f16: Path, imatrix: dict[str, np.ndarray], tmp_path: Path, family: str
) -> None:
    choices, path = choices_of(f16, parse_target(family)), tmp_path / "q.gguf"
    costs = [[1.0 / (1 + rung) for rung in range(len(group.rungs))] for group in choices.groups]
    for limit in (choices.smallest, int(1.2 * choices.smallest), 10**9):
        types = within(choices, costs, limit)
        quantize(f16, path, "q4_0", imatrix=imatrix, threads=1, tensor_types=patterns(types))
        made = {tensor.name: tensor.type.lower() for tensor in read_header(path).tensors}
        assert {name: made[name] for name in types} == types
        matrices = {tensor.name for tensor in read_header(f16).tensors if len(tensor.shape) > 1}
        assert types.keys() == matrices
        assert path.stat().st_size <= limit
        if limit == choices.smallest:
            assert path.stat().st_size == limit
    assert set(types.values()) == {"q8_0"}  # the last limit is no limit


def test_costs_are_those_of_files_quantized_directly(
    checkpoint: Checkpoint, f16: Path, imatrix: dict[str, np.ndarray], tmp_path: Path
) -> None:
    choices = choices_of(f16, parse_target("gguf-q4"))
    write_reference(tmp_path / "reference.safetensors", checkpoint, [TOKENS])
    steps: list[tuple[int, int]] = []
    costs = measure_costs(
        Trials(f16, tmp_path, imatrix, 1),
        choices,
        lambda model: verify_logits(model, tmp_path / "reference.safetensors", 1).kl_mean,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    expected = checkpoint.logits(TOKENS).astype(np.float64)

    def divergence(types: dict[str, str]) -> float:
        path = tmp_path / "direct.gguf"
        quantize(f16, path, "q4_0", imatrix=imatrix, threads=1, tensor_types=types)
        with open_engine(path, 64, 1, logits_all=True) as engine:
            found = engine.logits(TOKENS).astype(np.float64)
        p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (expected, found))
        return float((np.exp(p) * (p - q)).sum(-1).mean())

    top = {f"^{t.name}$": "q8_0" for group in choices.groups for t in group.tensors}
    best = divergence(top)
    for group, own in zip(choices.groups, costs, strict=True):
        for rung, cost in zip(group.rungs[:-1], own[:-1], strict=True):
            types = {f"^{t.name}$": kind for t, kind in zip(group.tensors, rung, strict=True)}
            assert cost == pytest.approx(max(0.0, divergence(top | types) - best), abs=1e-6)
        assert own[-1] == 0
    assert max(max(own) for own in costs) > 1e-3
    assert steps[-1] == (len(steps), len(steps))


def invented(seed: int, tensors: int) -> tuple[Choices, list[list[float]]]:
    """Groups of matrices of many sizes, with costs that fall in no order."""
    rng, groups, costs = random.Random(seed), [], []
    for number in range(5):
        shapes = [(32 * rng.randint(1, 20), 32 * rng.randint(1, 20)) for _ in range(tensors)]
        own = tuple(
            TensorInfo(f"blk.{index}.part{number}.weight", shape, "F16", math.prod(shape), 0, 0)
            for index, shape in enumerate(shapes)
        )
        rungs = tuple((kind,) * tensors for kind in ("iq4_nl", "q5_0", "q8_0"))
        groups.append(Group(own, rungs))
        costs.append([rng.random(), rng.random() / 2, 0.0])
    return Choices(tuple(groups), 4096), costs


def everything(choices: Choices, costs: list[list[float]]) -> list[tuple[int, float]]:
    """Bytes and cost of every combination of rungs, by the definition."""
    found = []
    for rungs in itertools.product(*(range(len(group.rungs)) for group in choices.groups)):
        pairs = list(zip(choices.groups, rungs, strict=True))
        weights = [padded(tensor_bytes(t.shape, g.rungs[r][0])) for g, r in pairs for t in g.tensors]
        found.append((choices.fixed + sum(weights), sum(own[r] for own, r in zip(costs, rungs, strict=True))))
    return found


def outcome(choices: Choices, costs: list[list[float]], types: dict[str, str]) -> tuple[int, float]:
    """Bytes and cost of a choice in which every group has one type."""
    size, cost = choices.fixed, 0.0
    for group, own in zip(choices.groups, costs, strict=True):
        (kind,) = {types[tensor.name] for tensor in group.tensors}
        size += sum(padded(tensor_bytes(tensor.shape, kind)) for tensor in group.tensors)
        cost += own[[rung[0] for rung in group.rungs].index(kind)]
    return size, cost


@pytest.mark.parametrize("seed", range(6))
def test_within_is_near_the_best_of_all_combinations(seed: int) -> None:
    choices, costs = invented(seed, tensors=1)
    combinations = everything(choices, costs)
    dearest = max(cost for own in costs for cost in own)
    for limit in sorted(size for size, _ in combinations)[::7]:
        size, cost = outcome(choices, costs, within(choices, costs, limit))
        best = min(cost for size, cost in combinations if size <= limit)
        assert size <= limit
        assert best <= cost <= best + dearest  # greedy choices are off by less than one step
    hull = [
        (size, cost)
        for size, cost in combinations
        if min(c + s * 1e-6 for s, c in combinations) == cost + size * 1e-6
    ]
    for limit, least in hull:  # and by nothing where the budget is met exactly
        assert outcome(choices, costs, within(choices, costs, limit)) == pytest.approx((limit, least))


def test_a_limit_is_filled_matrix_by_matrix() -> None:
    choices, costs = invented(1, tensors=12)
    largest = sum(sum(group.sizes(-1)) for group in choices.groups) + choices.fixed
    for share in (0.1, 0.37, 0.5, 0.93):
        limit = int(choices.smallest + share * (largest - choices.smallest))
        types = within(choices, costs, limit)
        size = choices.fixed + sum(
            padded(tensor_bytes(tensor.shape, types[tensor.name]))
            for group in choices.groups
            for tensor in group.tensors
        )
        assert 0.995 * limit < size <= limit


def test_patterns_name_each_matrix_once() -> None:
    types = {"token_embd.weight": "q5_0", "output.weight": "q8_0"}
    types |= {f"blk.{index}.ffn_up.weight": "q5_0" if index % 2 else "iq4_nl" for index in range(12)}
    assert patterns(types) == {
        r"^token_embd\.weight$": "q5_0",
        r"^output\.weight$": "q8_0",
        r"^blk\.(0|2|4|6|8|10)\.ffn_up\.weight$": "iq4_nl",
        r"^blk\.(1|3|5|7|9|11)\.ffn_up\.weight$": "q5_0",
    }
