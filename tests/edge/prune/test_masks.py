"""Magnitude, Wanda and SparseGPT masks against brute force, the authors' code and a plain loop with hooks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: TID253
from pruning import prune_context
from safetensors.torch import load_file
from tiny_build import write_corpus, write_model
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.checkpoint import load_model
from minigpt_edge.prune.masks import MaskPruner, MaskResult, Pattern, mask_blocks, parse_pattern
from minigpt_edge.prune.methods import magnitude, sparsegpt, wanda
from minigpt_edge.prune.methods.registry import get_method
from minigpt_edge.prune.scores import UnitStatistics
from minigpt_edge_runtime.errors import UsageError

MASK_METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("unstructured", "2:4", "4:8")
REFERENCE = load_file(Path(__file__).parents[1] / "data" / "wanda_reference.safetensors")
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for products this small, threads only wait for each other
    yield
    torch.set_num_threads(threads)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int, tokens: int) -> Tensor:
    return seeded(tokens, columns, seed=1) @ (torch.eye(columns) + seeded(columns, columns, seed=2) / 8)


def pruned(method: str, weight: Tensor, inputs: Tensor, pattern: Pattern, sparsity: float = 0.5) -> Tensor:
    """What a method makes of a weight whose inputs [tokens, columns] are known."""
    if method == "sparsegpt":
        return sparsegpt.solve(weight, inputs.t() @ inputs, pattern, sparsity)[0]
    if method == "wanda":
        return weight.masked_fill(wanda.mask(weight, inputs.norm(dim=0), pattern, sparsity), 0)
    return weight.masked_fill(magnitude.mask(weight, None, pattern, sparsity), 0)


def test_patterns_are_read_and_others_refused() -> None:
    assert parse_pattern("unstructured") == Pattern()
    assert parse_pattern("2:4") == Pattern(2, 4)
    assert parse_pattern("1:3") == Pattern(1, 3)
    for text in ("", "4:2", "4:4", "0:4", "2:4:8", "2/4", "half"):
        with pytest.raises(UsageError, match="unknown pattern"):
            parse_pattern(text)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (3, 4), (4, 8), (2, 3)])
def test_n_of_m_is_the_cheapest_of_all_choices(n: int, m: int) -> None:
    weight, norms = seeded(5, 2 * m), seeded(2 * m, seed=3).abs()
    for gone, cost in (
        (magnitude.mask(weight, None, Pattern(n, m), n / m), weight.abs()),
        (wanda.mask(weight, norms, Pattern(n, m), n / m), weight.abs() * norms),
    ):
        for row, start in itertools.product(range(5), (0, m)):
            piece = cost[row, start : start + m]
            best = min(itertools.combinations(range(m), n), key=lambda c: float(piece[list(c)].sum()))
            assert gone[row, start : start + m].nonzero().flatten().tolist() == list(best)


@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.7, 0.99])
def test_unstructured_takes_the_lowest_and_exactly_as_many_as_asked_for(sparsity: float) -> None:
    weight, norms = seeded(7, 100), seeded(100, seed=3).abs()
    score = weight.abs() * norms
    count = round(100 * sparsity)
    for row, gone in zip(score, wanda.mask(weight, norms, Pattern(), sparsity), strict=True):
        assert gone.sum() == count and row[gone].max() < row[~gone].min()
    gone = magnitude.mask(weight, None, Pattern(), sparsity)
    assert gone.sum() == round(700 * sparsity) and weight[gone].abs().max() < weight[~gone].abs().min()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_of_equal_weights_the_first_go(pattern: str) -> None:
    weight = torch.ones(3, 16)
    gone = wanda.mask(weight, torch.ones(16), parse_pattern(pattern), 0.5)
    period = {"unstructured": 16, "2:4": 4, "4:8": 8}[pattern]
    assert torch.equal(gone, (torch.arange(16) % period < period // 2).expand(3, -1))
    assert magnitude.mask(weight, None, parse_pattern(pattern), 0.5).sum() == 24


def test_structured_magnitude_is_the_norm_of_what_reads_a_unit() -> None:
    weight = seeded(12, 5)
    for group in (1, 3):
        statistics = UnitStatistics(weight, torch.ones(12), group=group)
        expected = [
            sum(float(w) ** 2 for u in range(g * group, (g + 1) * group) for w in weight[u]) ** 0.5
            for g in range(12 // group)
        ]
        assert magnitude.scores(statistics).tolist() == pytest.approx(expected, rel=1e-5)


def brute_force(weight: Tensor, gram: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Optimal brain surgeon, column by column, with the explicit inverse over the columns not yet settled."""
    w, gone = weight.double().clone(), torch.zeros_like(weight, dtype=torch.bool)
    hessian = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(len(gram)).double()
    inverses = [torch.linalg.inv(hessian[i:, i:]) for i in range(len(gram))]
    removal = torch.stack([inverse[0, 0] for inverse in inverses])
    for i, inverse in enumerate(inverses):
        if pattern.m and i % pattern.m == 0:
            now = slice(i, i + pattern.m)
            for row, cost in enumerate(w[:, now].square() / removal[now]):
                gone[row, i + cost.argsort()[: pattern.n]] = True
        if not pattern.m and i % 128 == 0:
            cost = (w[:, i : i + 128].square() / removal[i : i + 128]).flatten()
            lowest = cost.argsort()[: int(len(cost) * sparsity)]
            width = min(128, len(gram) - i)
            gone[lowest // width, i + lowest % width] = True
        change = torch.where(gone[:, i], w[:, i] / inverse[0, 0], 0)
        w[:, i:] -= change[:, None] * inverse[0]
        w[gone[:, i], i] = 0
    return w


@pytest.mark.parametrize(
    ("shape", "pattern", "sparsity"),
    [
        ((6, 20), "unstructured", 0.5),
        ((6, 20), "2:4", 0.5),
        ((6, 24), "4:8", 0.5),
        ((6, 21), "1:3", 1 / 3),
        ((4, 160), "unstructured", 0.3),
        ((4, 160), "4:8", 0.5),
        ((3, 150), "2:5", 0.4),
        ((2, 280), "60:140", 3 / 7),  # an n:m block longer than the solver's own blocks
    ],
)
def test_sparsegpt_is_optimal_brain_surgeon_column_by_column(
    shape: tuple[int, int], pattern: str, sparsity: float
) -> None:
    weight, inputs = seeded(*shape), correlated(shape[1], 2 * shape[1])
    solved, damping = sparsegpt.solve(weight, inputs.t() @ inputs, parse_pattern(pattern), sparsity)
    expected = brute_force(weight, inputs.t() @ inputs, parse_pattern(pattern), sparsity)
    assert damping == 0.01
    assert torch.equal(solved == 0, expected == 0)
    assert torch.allclose(solved.double(), expected, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_masks_and_weights_are_those_of_the_authors_code(pattern: str) -> None:
    weight, inputs = REFERENCE["weight"], REFERENCE["inputs"].float()
    for method in ("magnitude", "wanda"):
        ours = pruned(method, weight, inputs, parse_pattern(pattern))
        assert torch.equal(ours == 0, REFERENCE[f"{method} {pattern}"]), method
    ours = pruned("sparsegpt", weight, inputs, parse_pattern(pattern))
    theirs = REFERENCE[f"sparsegpt {pattern}"]
    assert torch.equal(ours == 0, theirs == 0)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_update_lowers_the_output_error(pattern: str) -> None:
    weight, inputs = seeded(32, 160), correlated(160, 800)
    error = {
        method: (inputs @ (weight - pruned(method, weight, inputs, parse_pattern(pattern))).t()).norm()
        for method in MASK_METHODS
    }
    assert error["sparsegpt"] < 0.9 * error["wanda"] < error["magnitude"]


def test_an_ill_conditioned_hessian_is_solved_and_a_broken_one_refused() -> None:
    weight = seeded(8, 64)
    inputs = seeded(3, 64) * torch.logspace(-8, 4, 64)  # rank 3, energies over 24 decades
    inputs[:, 7] = 0
    solved, damping = sparsegpt.solve(weight, inputs.t() @ inputs, Pattern(2, 4), 0.5)
    assert solved.isfinite().all() and (solved[:, 7] == 0).all() and damping == 0.01
    indefinite = torch.eye(64)
    indefinite[0, 1] = indefinite[1, 0] = 1.05  # as rounding may leave it
    solved, damping = sparsegpt.solve(weight, indefinite, Pattern(2, 4), 0.5)
    assert solved.isfinite().all() and damping == 0.1
    for broken in (torch.full((64, 64), float("nan")), -torch.eye(64)):
        with pytest.raises(ValueError, match="Hessian"):
            sparsegpt.solve(weight, broken, Pattern(), 0.5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    write_corpus(folder / "corpus", documents=20)
    return write_model(folder / "model", folder / "corpus", blocks=2)


def windows() -> Tensor:
    return torch.randint(0, 300, (24, 64), generator=torch.Generator().manual_seed(1))


def masked(model_dir: Path, method: str, pattern: str, **options: Any) -> tuple[nn.Module, MaskResult]:
    model = load_model(model_dir)
    return model, mask(model, method, pattern, **options)


def mask(model: Any, method: str, pattern: str, sparsity: float = 0.5, **inputs: Any) -> MaskResult:
    """Mask a model in place."""
    pruner = get_method(method).pruner(pattern)
    assert isinstance(pruner, MaskPruner)
    return mask_blocks(prune_context(model, windows(), inputs, pattern=pattern, sparsity=sparsity), pruner)


def products_in(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("minigpt_edge.models.precision.compute_dtype", lambda: dtype)


def by_hooks(model: Any, ids: Tensor, method: str, pattern: Pattern) -> dict[str, Tensor]:
    """The published walk on a transformers model in place; GGUF name -> mean squared input."""
    importance: dict[str, Tensor] = {}
    seen: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        handles = [
            linear.register_forward_hook(
                lambda _module, args, _out, key=(index, name): seen.__setitem__(key, args[0].flatten(0, 1))
            )
            for name, linear in linears.items()
        ]
        with torch.no_grad():
            model(ids, use_cache=False)  # the blocks before are pruned already, this one is dense
        for handle in handles:
            handle.remove()
        for name, linear in linears.items():
            importance[f"blk.{index}.{GGUF_NAMES[name]}.weight"] = seen[index, name].square().mean(0)
            linear.weight.data = pruned(method, linear.weight.data, seen[index, name], pattern)
    return importance


def blocks_of(model: nn.Module) -> dict[str, Tensor]:
    """GGUF name -> weight of every matrix in the blocks."""
    tensors = model.state_dict()
    return {
        f"blk.{index}.{name}.weight": tensors[f"model.layers.{index}.{part}.weight"]
        for index in range(2)
        for part, name in GGUF_NAMES.items()
    }


@pytest.mark.whole
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", MASK_METHODS)
def test_blocks_are_pruned_as_by_a_plain_loop_with_hooks(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, pattern: str
) -> None:
    products_in(monkeypatch, torch.float32)
    plain = load_model(model_dir)
    importance = by_hooks(plain, windows(), method, parse_pattern(pattern))
    model, result = masked(model_dir, method, pattern)
    expected = blocks_of(plain)
    for name, weight in blocks_of(model).items():
        # near-ties fall either way by the order of float32 sums, and SparseGPT's next columns follow
        assert ((weight == 0) != (expected[name] == 0)).float().mean() < 1e-3, name
        assert (weight - expected[name]).norm() < 1e-2 * expected[name].norm(), name
    if method == "magnitude":
        assert result.importance == {} and result.seconds["forward"] == 0
        return
    assert set(result.importance) == {*importance, "token_embd.weight", "output.weight"}
    for name, squares in importance.items():
        assert torch.allclose(result.importance[name], squares, rtol=1e-3), name
    with torch.no_grad():
        final = plain.model(windows()).last_hidden_state.square().mean((0, 1))  # type: ignore[operator]
    assert torch.allclose(result.importance["output.weight"], final, rtol=1e-2)


@pytest.mark.whole
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", MASK_METHODS)
def test_exactly_what_was_asked_for_is_zero(model_dir: Path, method: str, pattern: str) -> None:
    dense, calls = load_model(model_dir).state_dict(), []
    model, result = masked(
        model_dir, method, pattern, on_progress=lambda _, done, total: calls.append((done, total))
    )
    assert calls == [(1, 2), (2, 2)]
    assert result.sparsity == 0.5 and set(result.zeros.values()) == {0.5} and not result.damping
    n, m = {"unstructured": (0, 0), "2:4": (2, 4), "4:8": (4, 8)}[pattern]
    for name, weight in blocks_of(model).items():
        assert result.zeros[name] == float((weight == 0).float().mean())
        if m:
            assert ((weight.view(-1, m) == 0).sum(1) == n).all()
    for name, weight in model.state_dict().items():
        part = name.removesuffix(".weight").split(".", 3)[-1]
        assert torch.equal(weight, dense[name]) != (part in GGUF_NAMES), name
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_bfloat16_forward_passes_choose_nearly_the_same(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products_in(monkeypatch, torch.float32)
    exact, _ = masked(model_dir, "wanda", "unstructured")
    products_in(monkeypatch, torch.bfloat16)
    fast, _ = masked(model_dir, "wanda", "unstructured")
    for name, weight in blocks_of(fast).items():
        assert ((weight == 0) == (blocks_of(exact)[name] == 0)).float().mean() > 0.98, name


def test_micro_batches_do_not_matter(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    products_in(monkeypatch, torch.float32)
    whole, result = masked(model_dir, "wanda", "2:4")
    monkeypatch.setattr("minigpt_edge.prune.masks.MICRO_BATCH_TOKENS", 64)
    parts, again = masked(model_dir, "wanda", "2:4")
    for name, weight in blocks_of(whole).items():
        assert ((weight == 0) == (blocks_of(parts)[name] == 0)).float().mean() > 0.999
        assert torch.allclose(result.importance[name], again.importance[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "pattern", "sparsity", "message"),
    [
        ("contextual", "2:4", 0.5, "has no pattern"),
        ("wanda", "2:4", 0.6, "2:4 makes 50.00% of the weights zero, not 60.00%"),
        ("wanda", "unstructured", 1.0, "not between 0 and 1"),
        ("magnitude", "1:3", 1 / 3, "32 inputs, no multiple of 3"),
    ],
)
def test_what_can_not_be_met_is_said_before_anything_changes(
    model_dir: Path, method: str, pattern: str, sparsity: float, message: str
) -> None:
    model = load_model(model_dir)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=message):
        mask(model, method, pattern, sparsity)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
