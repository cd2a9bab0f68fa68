"""Causal attention: on a CPU a few query rows at a time, two to three times as fast as torch's own kernel.

Import this module inside functions: it needs torch at its head.
"""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253
from torch import Tensor  # noqa: TID253
from torch.nn import functional  # noqa: TID253

from minigpt_edge.models.precision import without_autocast

# Scores of so few rows stay in the processor's cache, and little is computed beyond the diagonal.
QUERY_ROWS = 64
NAME = "minigpt_edge_rows"  # transformers knows this attention under it
FUSED = ("cuda", "mps", "xpu")  # kinds of devices whose own kernel is the faster one


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, rows: int = QUERY_ROWS, lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Mixed values [b, heads, s, d] of q [b, heads, s, d], k and v [b, groups, s, d].

    Products are in the dtype of q, the softmax inside is float32; the query heads of a group are one product.
    With `lse` the log of the softmax's sum comes too, float32 [b, heads, s], for a backward pass.
    """
    if q.device.type in FUSED and not lse:
        return fused_attention(q, k, v, scale), None
    b, heads, s, d = q.shape
    groups = k.shape[1]
    per = heads // groups
    queries = (q * scale).reshape(b * groups, per, s, d)
    keys, values = (t.reshape(b * groups, s, d) for t in (k, v))
    beyond = q.new_full((rows, rows), float("-inf")).triu(1)
    mixed, sums = [], []
    for start in range(0, s, rows):
        end = min(start + rows, s)
        n = end - start
        q_i = queries[:, :, start:end].reshape(b * groups, per * n, d)
        scores = torch.bmm(q_i, keys[:, :end].transpose(1, 2)).view(b * groups, per, n, end)
        scores[..., start:] += beyond[:n, :n]
        p = scores.softmax(-1).view(b * groups, per * n, end)
        mixed.append(torch.bmm(p, values[:, :end]).view(b * groups, per, n, d))
        if lse:
            sums.append(scores.float().logsumexp(-1))
    out = torch.cat(mixed, 2).view(b, heads, s, d)
    return out, torch.cat(sums, 2).view(b, heads, s) if lse else None


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same by torch's own kernel, which never holds the scores; differentiable."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)


def use_in(model: Any) -> None:
    """Let a transformers model attend with it, in forward passes without a cache or a padding mask."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # without one a padding mask would be ignored
    model.set_attn_implementation(NAME)


def _attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    if mask is not None or q.shape[2] != k.shape[2]:
        raise ValueError("neither masks nor caches: pad on the right, where causal attention does not look")
    with without_autocast(q):  # it would widen the softmax, and rotary positions did q and k
        mixed, _lse = causal_attention(q.to(v.dtype), k.to(v.dtype), v, scaling)
    return mixed.transpose(1, 2), None
