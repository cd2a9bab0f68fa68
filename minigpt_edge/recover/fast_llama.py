"""The decoder's forward and backward for training on a CPU: bf16 products, few passes over memory.

Same mathematics as transformers' Llama blocks, on the same float32 parameters, written so that
torch.compile fuses what lies between the products, and with an attention backward of its own
(the stock CPU kernel took 40 % of a step). Compiled it takes 60 % of the time of transformers' blocks under
bf16 autocast; uncompiled it is no faster than they are, and serves only as the reference in tests.
Import this module inside functions: it needs torch at its head to define autograd functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch  # noqa: TID253
from torch import Tensor, nn  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from minigpt_edge.models.attention import FUSED, causal_attention, fused_attention
from minigpt_edge.models.precision import compute_dtype

QUERY_ROWS = 128  # of the score matrix at a time: fewer do less beyond the diagonal but compile for longer
MOST_ATTENTION_SIZES = 8  # each is compiled on its own, for about 8 seconds; MLP widths share one


class Linear(torch.autograd.Function):
    """x [tokens, in] times the transpose of a float32 weight [out, in], computed in x's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        return x @ cast.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, cast = ctx.saved_tensors
        rows = grad.t().contiguous()  # a compiled transposition is cheap, and doubles the product's rate
        return grad @ cast, (rows @ x).float()


class CausalAttention(torch.autograd.Function):
    """q [b, heads, s, d], k and v [b, groups, s, d] -> [b, heads, s, d]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
        out, lse = causal_attention(q, k, v, scale, rows=QUERY_ROWS, lse=True)
        ctx.save_for_backward(q, k, v, mask, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Scores are computed again from `lse`, QUERY_ROWS rows at a time and only up to the diagonal.

        The query heads of a group are one product.
        """
        q, k, v, mask, out, lse = ctx.saved_tensors
        b, heads, s, d = q.shape
        groups = k.shape[1]
        per = heads // groups
        delta = (grad.float() * out.float()).sum(-1).view(b * groups, per, s)
        lse = lse.reshape(b * groups, per, s)
        queries, grads = (t.reshape(b * groups, per, s, d) for t in (q, grad))
        keys, values = (t.reshape(b * groups, s, d) for t in (k, v))
        dq, dk, dv = [], *(torch.zeros_like(t, dtype=torch.float32) for t in (keys, values))
        for start in range(0, s, QUERY_ROWS):
            end = min(start + QUERY_ROWS, s)
            rows = per * (end - start)
            q_i, g_i = (t[:, :, start:end].reshape(b * groups, rows, d) for t in (queries, grads))
            k_i, v_i = keys[:, :end], values[:, :end]
            scores = torch.bmm(q_i, k_i.transpose(1, 2)).view(b * groups, per, end - start, end).float()
            p = torch.exp(scores * ctx.scale - lse[:, :, start:end, None] + mask[start:end, :end])
            dp = torch.bmm(g_i, v_i.transpose(1, 2)).view_as(p).float()
            ds = p * (dp - delta[:, :, start:end, None]) * ctx.scale
            ds, p = (t.to(q.dtype).view(b * groups, rows, end) for t in (ds, p))
            dq.append(torch.bmm(ds, k_i).view(b * groups, per, end - start, d))
            dk[:, :end] += torch.bmm(ds.transpose(1, 2), q_i)
            dv[:, :end] += torch.bmm(p.transpose(1, 2), g_i)
        dq_whole = torch.cat(dq, 2).view_as(q)
        return dq_whole, dk.to(k.dtype).view_as(k), dv.to(v.dtype).view_as(v), None, None


def causal_mask(length: int) -> Tensor:
    """float32 [length, length]: 0 up to the diagonal, -inf beyond; loading it beats comparing indices."""
    return torch.full((length, length), float("-inf")).triu(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [tokens, hidden] scaled to unit mean square, times weight [hidden] (float32 inside)."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    a, b = x[..., :half].float(), x[..., half:].float()
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Positions(NamedTuple):
    """What attention needs to know of positions: cos, sin [s, 1, head_dim / 2] and `causal_mask(s)`."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


class AttentionWeights(NamedTuple):
    """A block's float32 weights before and in its attention."""

    norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


def attention_part(x: Tensor, positions: Positions, weights: AttentionWeights, eps: float) -> Tensor:
    """x [batch, s, hidden] plus its self-attention."""
    batch, s, hidden = x.shape
    cos, sin, mask = positions
    d = 2 * cos.shape[-1]
    flat = rms_norm(x.view(-1, hidden), weights.norm, eps)
    queries, keys, values = (
        Linear.apply(flat, w).view(batch, s, -1, d) for w in (weights.q, weights.k, weights.v)
    )
    queries, keys = _rotate(queries, cos, sin), _rotate(keys, cos, sin)
    q, k, v = (t.transpose(1, 2) for t in (queries, keys, values))
    if x.device.type in FUSED:
        mixed = fused_attention(q, k, v, d**-0.5)
    else:
        mixed = CausalAttention.apply(q, k, v, mask, d**-0.5)
    return x + Linear.apply(mixed.transpose(1, 2).reshape(batch * s, -1), weights.o).view_as(x)


def mlp_part(x: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float) -> Tensor:
    """x [batch, s, hidden] plus its SwiGLU MLP; weights float32."""
    flat = rms_norm(x.view(-1, x.shape[-1]), norm, eps)
    gated = functional.silu(Linear.apply(flat, gate).float()) * Linear.apply(flat, up)
    return x + Linear.apply(gated.to(x.dtype), down).view_as(x)


class CompileError(RuntimeError):
    """The blocks could not be compiled, for want of a C++ compiler for example."""


@dataclass(frozen=True)
class Parts:
    """The two halves of a block, compiled or not."""

    attention: Callable[..., Tensor] = attention_part
    mlp: Callable[..., Tensor] = mlp_part


def hidden_states(model: nn.Module, ids: Tensor, parts: Parts) -> Tensor:
    """Hidden states [batch, s, hidden] that enter the head of a LlamaForCausalLM, for token ids [batch, s].

    Blocks may have different sizes. The residual stream and products are in `compute_dtype()`.
    """
    body: Any = model.model
    eps = body.norm.variance_epsilon
    x = functional.embedding(ids, body.embed_tokens.weight).to(compute_dtype())
    cos, sin = body.rotary_emb(x.float(), torch.arange(ids.shape[1])[None])
    half = cos.shape[-1] // 2
    cos, sin = (t[0, :, None, :half].contiguous() for t in (cos, sin))
    positions = Positions(cos, sin, causal_mask(ids.shape[1]))
    for block in body.layers:
        x = parts.attention(x, positions, _attention_weights(block), eps)
        x = parts.mlp(x, *_mlp_weights(block), eps)
    return rms_norm(x, body.norm.weight, eps)


def _attention_weights(block: Any) -> AttentionWeights:
    linears = (getattr(block.self_attn, f"{name}_proj") for name in "qkvo")
    return AttentionWeights(block.input_layernorm.weight, *(linear.weight for linear in linears))


def _mlp_weights(block: Any) -> tuple[Tensor, ...]:
    m = block.mlp
    return block.post_attention_layernorm.weight, m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight


def check_supported(model: nn.Module) -> str | None:
    """None if `hidden_states` computes this model, else what it can't do."""
    config: Any = model.config
    if config.model_type != "llama":
        return f"model type {config.model_type}"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act}"
    if any(name.endswith(".bias") for name, _ in model.named_parameters()):
        return "biases"
    return None


def compiled_parts(model: nn.Module, batch: int, length: int) -> Parts:
    """The halves of a block compiled for [batch, length] token ids.

    Every different block size is run once, so that a missing C++ compiler shows here and not in training.

    Raises:
        CompileError: the compiler is missing or fails, or attention has too many different sizes.
    """
    from torch._dynamo import config as dynamo

    body: Any = model.model
    sizes = {tuple(w.shape for w in _attention_weights(block)) for block in body.layers}
    if len(sizes) > MOST_ATTENTION_SIZES:
        raise CompileError(f"attention has {len(sizes)} different sizes, compiling would take too long")
    parts = Parts(torch.compile(attention_part, dynamic=False), torch.compile(mlp_part))
    config: Any = model.config
    hidden, half = body.embed_tokens.weight.shape[1], config.head_dim // 2
    turns = torch.ones(length, 1, half), torch.zeros(length, 1, half)
    positions = Positions(*turns, causal_mask(length))
    seen = set()
    eps = body.norm.variance_epsilon
    try:
        limits = dynamo.patch(force_parameter_static_shapes=False, recompile_limit=MOST_ATTENTION_SIZES)
        with limits:
            for block in body.layers:
                weights = _attention_weights(block), _mlp_weights(block)
                shapes = tuple(w.shape for part in weights for w in part)
                if shapes in seen:
                    continue
                seen.add(shapes)
                x = torch.zeros(batch, length, hidden, dtype=compute_dtype(), requires_grad=True)
                mixed = parts.attention(x, positions, weights[0], eps)
                out = parts.mlp(mixed, *weights[1], eps)
                out.sum().backward()
    except Exception as error:  # torch raises many kinds
        raise CompileError(next(iter(str(error).strip().splitlines()), type(error).__name__)) from error
    finally:
        model.zero_grad()
    return parts
