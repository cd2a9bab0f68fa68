"""The training forward against transformers, in float32 and bf16, and the head's loss against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_helpers import make_checkpoint, make_corpus

torch = pytest.importorskip("torch")


def relative(a: Any, b: Any) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def gradients(model: Any, hidden: Any, weights: Any) -> dict[str, Any]:
    model.zero_grad()
    (hidden.float() * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 4e-2)])
def test_hidden_states_and_gradients_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unequal: bool, dtype: str, tolerance: float
) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover import fast_llama

    monkeypatch.setattr(fast_llama, "compute_dtype", lambda: getattr(torch, dtype))
    model = load_model(make_checkpoint(tmp_path, unequal=unequal))
    ids, weights = torch.randint(0, 300, (2, 40)), torch.randn(2, 40, 32)
    expected = model.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = gradients(model, expected, weights)
    actual = fast_llama.hidden_states(model, ids, fast_llama.Parts())
    got = gradients(model, actual, weights)
    assert relative(actual.float(), expected) < tolerance
    for name, gradient in wanted.items():
        assert relative(got[name], gradient) < tolerance, name


def test_attention_backward_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.recover import fast_llama

    monkeypatch.setattr(fast_llama, "QUERY_ROWS", 16)  # several pieces, the last one short
    q, k, v = (torch.randn(2, heads, 37, 8, requires_grad=True) for heads in (6, 2, 2))
    weights = torch.randn(2, 6, 37, 8)
    wide = (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True)
    wanted = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    actual = fast_llama.CausalAttention.apply(q, k, v, fast_llama.causal_mask(37), 8**-0.5)
    got = torch.autograd.grad((actual * weights).sum(), (q, k, v))
    for a, b in zip((actual, *got), (expected, *wanted), strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover import fast_llama

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    model = load_model(make_checkpoint(tmp_path / "model", unequal=True))
    ids, weights = torch.randint(0, 300, (2, 64)), torch.randn(2, 64, 32)
    parts = fast_llama.compiled_parts(model, 2, 64)
    expected = fast_llama.hidden_states(model, ids, fast_llama.Parts())
    wanted = gradients(model, expected, weights)
    actual = fast_llama.hidden_states(model, ids, parts)
    got = gradients(model, actual, weights)
    assert relative(actual.float(), expected.float()) < 4e-2
    assert all(relative(got[name], wanted[name]) < 6e-2 for name in wanted)


def test_without_a_compiler_training_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover import fast_llama, recover, session
    from minigpt_edge.recover.config import RecoverConfig, TrainingTexts

    def no_compiler(*_: Any, **__: Any) -> Any:
        def fail(*_: Any) -> Any:
            raise RuntimeError("no C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(fast_llama.CompileError, match="no C"):
        fast_llama.compiled_parts(load_model(make_checkpoint(tmp_path / "model")), 2, 16)
    monkeypatch.setattr(session, "COMPILE_FROM", 1)
    messages: list[str] = []
    result = recover.recover(
        tmp_path / "model",
        tmp_path / "out",
        TrainingTexts(**make_corpus(tmp_path / "corpus")),
        RecoverConfig(tokens=512, sequence_length=64, step_tokens=256, threads=1),
        on_progress=lambda entry: messages.append(entry.get("message", "")),
    )
    assert any("no C++ compiler" in message for message in messages)
    assert result["tokens"] == 512 and not result["compiled"]


def test_what_the_fast_blocks_do_not_compute_is_named(tmp_path: Path) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover import fast_llama

    assert fast_llama.check_supported(load_model(make_checkpoint(tmp_path / "a"))) is None
    assert fast_llama.check_supported(load_model(make_checkpoint(tmp_path / "b", mlp_bias=True))) == "biases"
    gelu: Any = load_model(tmp_path / "a")
    gelu.config.hidden_act = "gelu"
    assert fast_llama.check_supported(gelu) == "activation gelu"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1.5e-2)])
def test_chunked_cross_entropy_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float
) -> None:
    from minigpt_edge.models import chunked_loss

    monkeypatch.setattr(
        chunked_loss, "CHUNK_BYTES", 16 * 4 * 300
    )  # 16 tokens at a time, the last chunk short
    hidden = torch.randn(75, 32).to(getattr(torch, dtype)).requires_grad_()
    weight = torch.randn(300, 32, requires_grad=True)
    labels = torch.randint(0, 300, (75,))
    expected = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().t(), labels)
    wanted = torch.autograd.grad(2 * expected, (hidden, weight))
    actual = chunked_loss.chunked_cross_entropy(hidden, weight, labels)
    got = torch.autograd.grad(2 * actual, (hidden, weight))
    assert actual.item() == pytest.approx(expected.item(), rel=tolerance)
    for a, b in zip(got, wanted, strict=True):
        assert relative(a, b) < tolerance
    nll = chunked_loss.chunked_nll(hidden.detach(), weight.detach(), labels)
    assert float(nll.mean()) == pytest.approx(expected.item(), rel=tolerance)


def test_soft_labels_share_the_target() -> None:
    from minigpt_edge.models.chunked_loss import SoftLabels, chunked_cross_entropy

    hidden, weight = torch.randn(75, 32, requires_grad=True), torch.randn(300, 32, requires_grad=True)
    labels, taught, head = torch.randint(0, 300, (75,)), torch.randn(75, 16), torch.randn(300, 16)
    hard = torch.nn.functional.one_hot(labels, 300)
    target = 0.7 * hard + 0.3 * (taught @ head.t()).softmax(-1)
    wanted = torch.autograd.grad(
        torch.nn.functional.cross_entropy(hidden @ weight.t(), target), (hidden, weight)
    )
    loss = chunked_cross_entropy(hidden, weight, labels, SoftLabels(taught, head, 0.3))
    for a, b in zip(torch.autograd.grad(loss, (hidden, weight)), wanted, strict=True):
        assert relative(a, b) < 1e-5
    plain = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize(("heads", "length"), [((6, 2), 37), ((4, 4), 16), ((3, 1), 5)])
def test_causal_attention_is_that_of_torch(heads: tuple[int, int], length: int) -> None:
    from minigpt_edge.models.attention import causal_attention

    q, k, v = (torch.randn(2, n, length, 8) for n in (heads[0], heads[1], heads[1]))
    per = heads[0] // heads[1]
    wide = (q, k.repeat_interleave(per, 1), v.repeat_interleave(per, 1))
    expected = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True, scale=0.3)
    scores = (wide[0] @ wide[1].transpose(2, 3) * 0.3).masked_fill(
        torch.ones(length, length).triu(1) > 0, -1e9
    )
    out, lse = causal_attention(q, k, v, 0.3, rows=16, lse=True)
    assert lse is not None
    assert relative(out, expected) < 1e-5 and relative(lse, scores.logsumexp(-1)) < 1e-5
    assert causal_attention(q, k, v, 0.3)[1] is None


def test_transformers_computes_the_same_with_it_and_refuses_padding(tmp_path: Path) -> None:
    from minigpt_edge.models import attention
    from minigpt_edge.models.checkpoint import load_model

    model = load_model(make_checkpoint(tmp_path, unequal=True))
    ids = torch.randint(0, 300, (2, 80))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        attention.use_in(model)
        assert relative(model(input_ids=ids, use_cache=False).logits, expected) < 1e-5
        padded = torch.ones(2, 80, dtype=torch.int64)
        padded[0, :5] = 0
        with pytest.raises(ValueError, match="pad on the right"):
            model(input_ids=ids, attention_mask=padded, use_cache=False)


def test_the_logits_never_exist_at_once() -> None:
    from minigpt_edge.models.chunked_loss import CHUNK_BYTES, chunked_cross_entropy

    hidden = torch.randn(4096, 8, requires_grad=True)
    weight = torch.randn(30_000, 8, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as profile:
        chunked_cross_entropy(hidden, weight, torch.zeros(4096, dtype=torch.int64)).backward()
    largest = max((e.self_cpu_memory_usage / max(e.count, 1) for e in profile.key_averages()), default=0)
    assert 0 < largest <= 1.1 * CHUNK_BYTES < 4096 * 30_000 * 4 / 4


def test_blocks_of_too_many_sizes_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt_edge.models.checkpoint import load_model
    from minigpt_edge.recover import fast_llama

    monkeypatch.setattr(fast_llama, "MOST_ATTENTION_SIZES", 1)
    with pytest.raises(fast_llama.CompileError, match="2 different sizes"):
        fast_llama.compiled_parts(load_model(make_checkpoint(tmp_path, unequal=True)), 2, 16)
