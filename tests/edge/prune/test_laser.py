"""Rank reduction against decompositions made by hand, and its two searches on scores made up for them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253 - tensors are what is tested
from safetensors.torch import load_file
from tiny_build import write_corpus, write_model

from minigpt_edge.evaluation.probe import Probe, token_forms
from minigpt_edge.models import archs
from minigpt_edge.models.checkpoint import load_model, save_factors, save_model
from minigpt_edge.models.forward import read_tokenizer
from minigpt_edge.prune.methods.laser import (
    PARTS,
    Reducer,
    Reduction,
    apply_reductions,
    candidates,
    compose,
    parse_reductions,
    rank_of,
    search,
)
from minigpt_edge_export.weights import FACTORS
from minigpt_edge_runtime.errors import EdgeError, UsageError

ARCH = archs.load_arch({"model_type": "llama"})
BLOCKS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laser")
    return write_model(folder / "model", write_corpus(folder / "corpus", documents=8), blocks=BLOCKS)


@pytest.fixture
def model(checkpoint: Path) -> Any:
    torch.set_num_threads(1)  # for products this small, threads only wait for each other
    return load_model(checkpoint)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def with_singular_values(values: list[float], rows: int, columns: int) -> torch.Tensor:
    """A matrix of two random rotations, so that its singular values are known."""
    maker = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=maker).double())[0] for n in (rows, columns))
    count = len(values)
    return (left[:, :count] * torch.tensor(values).double() @ right[:, :count].t()).float()


def factored(model: Any, part: str, weight: torch.Tensor, rho: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of one of a model's matrices if it were `weight`; the model then holds their product."""
    linear = getattr(model.model.layers[1].mlp, f"{part}_proj")
    linear.weight.data = weight
    ((b, a),) = Reducer(model, ARCH).reduce(Reduction(1, part, rho)).values()
    torch.testing.assert_close(linear.weight.data, b @ a)
    return b, a


@pytest.mark.parametrize(("part", "rows", "columns"), [("down", 8, 20), ("up", 20, 8)])
@pytest.mark.parametrize(("rho", "rank"), [(0.55, 4), (0.26, 2), (0.01, 1)])
def test_the_error_is_that_of_the_singular_values_left_out(
    model: Any, part: str, rows: int, columns: int, rho: float, rank: int
) -> None:
    """Eckart-Young: no matrix of that rank is nearer, in the Frobenius norm or the spectral one."""
    values = [9.0, 7.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.25]
    weight = with_singular_values(values, rows, columns)
    b, a = factored(model, part, weight.clone(), rho)
    assert b.shape == (rows, rank) and a.shape == (rank, columns)
    error = weight - b @ a
    assert float(error.square().sum()) == pytest.approx(sum(v * v for v in values[rank:]), rel=1e-4)
    assert float(torch.linalg.matrix_norm(error, 2)) == pytest.approx(values[rank], rel=1e-4)
    torch.testing.assert_close(b.t() @ b, a @ a.t(), atol=1e-4, rtol=1e-4)  # equally large
    torch.testing.assert_close((b.t() @ b).diagonal(), torch.tensor(values[:rank]), atol=1e-4, rtol=1e-4)


def test_a_diagonal_matrix_keeps_its_largest_entries(model: Any) -> None:
    b, a = factored(model, "up", torch.diag(torch.tensor([1.0, 5.0, 3.0, 2.0])), 0.5)
    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([0.0, 5.0, 3.0, 0.0])))


def test_the_rank_is_a_share_of_the_smaller_side() -> None:
    assert [
        rank_of(shape, rho) for shape, rho in (((1536, 576), 0.1), ((576, 1536), 0.01), ((9, 9), 0.05))
    ] == [
        57,
        5,
        1,
    ]


def test_reductions_are_read_from_text() -> None:
    assert parse_reductions("26:up:0.1, 27:attn:0.05") == [
        Reduction(26, "up", 0.1),
        Reduction(27, "attn", 0.05),
    ]
    assert str(Reduction(26, "up", 0.1)) == "26:up:0.1"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rank reduction"),
        ("26:up", "no rank reduction"),
        ("x:up:0.1", "no rank reduction"),
        ("1:up:0.1,", "no rank reduction"),
        ("1:gate_proj:0.1", "no matrix 'gate_proj'"),
        ("-1:up:0.1", "0 or more"),
        ("1:up:0", "between 0 and 1"),
        ("1:up:1", "between 0 and 1"),
        ("1:up:nan", "between 0 and 1"),
        ("1:up:0.1,1:mlp:0.2", "named before"),
    ],
)
def test_nonsense_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_reductions(text)


@pytest.mark.parametrize(
    ("matrix", "modules"),
    [
        ("q", {"self_attn.q_proj"}),
        ("k", {"self_attn.k_proj"}),
        ("v", {"self_attn.v_proj"}),
        ("o", {"self_attn.o_proj"}),
        ("gate", {"mlp.gate_proj"}),
        ("up", {"mlp.up_proj"}),
        ("down", {"mlp.down_proj"}),
        ("mlp", {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("attn", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
    ],
)
def test_a_matrix_is_reduced_where_it_is(model: Any, matrix: str, modules: set[str]) -> None:
    before = state(model)
    factors = apply_reductions(model, ARCH, [Reduction(2, matrix, 0.3)])
    assert set(factors) == {f"model.layers.2.{module}" for module in modules}
    assert changed(model, before) == {f"{name}.weight" for name in factors}
    for name, (b, a) in factors.items():
        torch.testing.assert_close(model.get_submodule(name).weight.data, b @ a)


def test_all_means_every_matrix_of_the_block(model: Any) -> None:
    assert len(apply_reductions(model, ARCH, [Reduction(0, "all", 0.3)])) == len(PARTS)


def test_a_block_that_is_not_there_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="no block 4"):
        apply_reductions(model, ARCH, [Reduction(BLOCKS, "up", 0.3)])


def test_a_reducer_takes_back_exactly(model: Any) -> None:
    before, reducer = state(model), Reducer(model, ARCH)
    reducer.reduce(Reduction(1, "mlp", 0.1))
    reducer.reduce(Reduction(1, "mlp", 0.6))  # of the dense matrices, not of what is left of them
    other = copy.deepcopy(model)
    reducer.restore(Reduction(1, "mlp", 0.6))
    assert changed(model, before) == set()
    apply_reductions(model, ARCH, [Reduction(1, "mlp", 0.6)])
    assert changed(model, state(other)) == set()


def test_the_search_finds_the_best_single_reduction(model: Any) -> None:
    """By a plain loop over copies of the model: how near each reduction is to a target of rank 3."""
    target = copy.deepcopy(model)
    weight = target.model.layers[2].mlp.up_proj.weight
    weight.data = weight.data @ torch.diag(torch.tensor([1.0] * 3 + [0.0] * 29))

    def score(model: Any, first: int) -> float:
        pairs = zip(model.parameters(), target.parameters(), strict=True)
        return -sum(float((a - b).detach().square().sum()) for a, b in pairs)

    before, tried = state(model), candidates(range(BLOCKS), ("up", "down"), (0.5, 0.1))
    assert len(tried) == 16
    trials = search(Reducer(model, ARCH), score, tried)
    assert changed(model, before) == set()
    expected = {}
    for reduction in tried:
        own = copy.deepcopy(model)
        linear = getattr(own.model.layers[reduction.block].mlp, f"{reduction.matrix}_proj")
        u, s, v = torch.linalg.svd(linear.weight.data)
        rank = int(32 * reduction.rho)
        linear.weight.data = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
        expected[reduction] = score(own, 0)
    assert [trial.reduction for trial in trials] == sorted(tried, key=lambda one: -expected[one])
    for trial in trials:
        assert trial.score == pytest.approx(expected[trial.reduction], rel=1e-4)


def test_of_equal_scores_the_stronger_reduction_is_best(model: Any) -> None:
    tried = candidates([0], ("q",), (0.9, 0.1, 0.5))
    trials = search(Reducer(model, ARCH), lambda model, first: 0.0, tried)
    assert [trial.reduction.rho for trial in trials] == [0.1, 0.5, 0.9]


def made_up_score(model: Any, rules: Callable[[list[int]], float], seen: list[list[int]]) -> Any:
    """A score of the ranks that the `up` matrices of all blocks have; what was scored goes to `seen`."""

    def score(model: Any, first: int) -> float:
        ranks = [int(torch.linalg.matrix_rank(block.mlp.up_proj.weight)) for block in ARCH.blocks(model)]
        assert all(rank == 32 for rank in ranks[:first])  # blocks before `first` are dense
        seen.append(ranks)
        return rules(ranks)

    return score


def test_composing_reverts_what_hurts_and_visits_every_block(model: Any) -> None:
    """Ranks 16, 8, 4: block 3 may go to 8, block 2 nowhere, block 1 to 4, block 0 to 16."""
    least, seen, before = [16, 4, 32, 8], [], state(model)

    def rules(ranks: list[int]) -> float:
        return -float(sum(max(0, low - rank) for low, rank in zip(least, ranks, strict=True)))

    found = compose(Reducer(model, ARCH), made_up_score(model, rules, seen), "up", (0.125, 0.5, 0.25))
    assert seen == [
        [32, 32, 32, 32],
        [32, 32, 32, 16],
        [32, 32, 32, 8],
        [32, 32, 32, 4],  # lower: back to 8
        [32, 32, 16, 8],  # lower: back to dense
        [32, 16, 32, 8],
        [32, 8, 32, 8],
        [32, 4, 32, 8],
        [16, 4, 32, 8],
        [8, 4, 32, 8],  # lower: back to 16
    ]
    assert [str(one) for one in found.reductions] == ["3:up:0.25", "1:up:0.125", "0:up:0.5"]
    assert (found.dense, found.score, len(found.trials)) == (0.0, 0.0, 9)
    assert changed(model, before) == set()
    apply_reductions(model, ARCH, found.reductions)
    assert [int(torch.linalg.matrix_rank(b.mlp.up_proj.weight)) for b in ARCH.blocks(model)] == [16, 4, 32, 8]


def test_composing_raises_the_bar_with_every_gain(model: Any) -> None:
    """Halving block 3 gains 1; what loses half of that later is refused, though it is above the start."""
    seen: list[list[int]] = []

    def rules(ranks: list[int]) -> float:
        return float(ranks[3] == 16) - 0.5 * sum(rank < 32 for rank in ranks[:3])

    found = compose(Reducer(model, ARCH), made_up_score(model, rules, seen), "up", (0.5,))
    assert [str(one) for one in found.reductions] == ["3:up:0.5"] and found.score == 1.0


def test_a_score_that_fails_leaves_the_model_dense(model: Any) -> None:
    before = state(model)

    def score(model: Any, first: int) -> float:
        if first < 2:
            raise EdgeError("out of patience")
        return 0.0

    with pytest.raises(EdgeError):
        compose(Reducer(model, ARCH), score, "up", (0.5,))
    assert changed(model, before) == set()
    with pytest.raises(EdgeError):
        search(Reducer(model, ARCH), score, [Reduction(0, "up", 0.5)])
    assert changed(model, before) == set()


def sequences(seed: int = 0) -> tuple[list[list[int]], list[int]]:
    maker = random.Random(seed)
    found = [[maker.randrange(3, 580) for _ in range(maker.randrange(5, 90))] for _ in range(40)]
    return found, [maker.randrange(1, len(ids)) for ids in found]


def test_a_probe_measures_what_the_model_itself_says(model: Any) -> None:
    """Each sequence alone in transformers, in float32."""
    texts, starts = sequences()
    found = Probe(model, ARCH, texts, starts).measure(model)
    for row, (ids, start) in enumerate(zip(texts, starts, strict=True)):
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0]
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        assert int(found.tokens[row]) == len(ids) - start
        assert float(found.nll[row]) == pytest.approx(float(losses[start - 1 :].sum()), rel=0.01)
    assert found.nll_per_token == pytest.approx(float(found.nll.sum()) / sum(map(int, found.tokens)))


@pytest.mark.whole
@pytest.mark.parametrize("kept_bytes", [2**29, 1_200_000])
def test_what_a_probe_kept_changes_nothing(
    model: Any, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change in block l measured from the kept states, and by a probe that starts at the embedding."""
    monkeypatch.setattr("minigpt_edge.evaluation.probe.KEPT_BYTES", kept_bytes)
    texts, starts = sequences()
    probe = Probe(model, ARCH, texts, starts)
    assert len(probe.kept) == (5 if kept_bytes == 2**29 else 3)
    dense = probe.measure(model)
    for block in range(BLOCKS):
        reducer = Reducer(model, ARCH)
        reducer.reduce(Reduction(block, "all", 0.1))
        cached, whole = probe.measure(model, block), Probe(model, ARCH, texts, starts).measure(model, 0)
        assert torch.equal(cached.nll, whole.nll) and torch.equal(cached.right, whole.right)
        assert not torch.equal(cached.nll, dense.nll)
        reducer.restore_all()
    assert torch.equal(probe.measure(model, BLOCKS).nll, dense.nll)


def test_the_first_token_is_right_if_it_says_the_same(checkpoint: Path, model: Any) -> None:
    tokenizer = read_tokenizer(checkpoint)
    forms = token_forms(tokenizer)
    number = tokenizer.token_to_id
    assert forms[number("s")] == forms[number("S")] != forms[number("t")]
    half = [number(symbol) for symbol in ("\u00c3", "\u00c4")]  # the first bytes of two characters
    assert forms[half[0]] != forms[half[1]]
    with torch.inference_mode():
        likeliest = int(model(torch.tensor([[0, 9]])).logits[0, -1].argmax())
    other = next(token for token in range(len(forms)) if token != likeliest)
    strict = Probe(model, ARCH, [[0, 9, likeliest, 5], [0, 9, other]], [2, 2]).measure(model)
    assert strict.right.tolist() == [True, False] and strict.accuracy == 0.5
    same = [0 if token in (likeliest, other) else token + 1 for token in range(len(forms))]
    assert Probe(model, ARCH, [[0, 9, other]], [2], same).accuracy(model) == 1.0


def test_factors_are_kept_beside_the_product(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    factors = apply_reductions(model, ARCH, parse_reductions("1:up:0.2,3:attn:0.3"))
    save_model(model, checkpoint, tmp_path)
    save_factors(tmp_path, factors)
    found = load_file(tmp_path / FACTORS)
    assert len(factors) == 5 and set(found) == {f"{name}.{part}" for name in factors for part in "ba"}
    again = load_model(tmp_path)
    for name, (b, a) in factors.items():
        assert torch.equal(found[f"{name}.b"], b) and torch.equal(found[f"{name}.a"], a)
        torch.testing.assert_close(again.get_submodule(name).weight.data, b @ a)
    save_model(model, checkpoint, tmp_path)  # other weights: the old factors would be wrong
    assert not (tmp_path / FACTORS).exists()
