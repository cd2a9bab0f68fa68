"""Parts of a decoder's ONNX graph that know where in the text a token is."""

from __future__ import annotations

import numpy as np

from minigpt_edge_export.decoder import Rope
from minigpt_edge_export.onnx.graph import Graph


def lengths(graph: Graph) -> list[str]:
    """GroupQueryAttention's tokens before the newest one, int32 [batch], and tokens in all, int32 []."""
    node, number = graph.node, graph.integers
    count = node("ReduceSum", ["attention_mask", number([1])], "mask.sum", keepdims=0)
    before = node("Sub", [count, number([1])], "mask.before")
    shape = node("Shape", ["attention_mask"], "mask.shape")
    total = node("Gather", [shape, number(1)], "mask.total", axis=0)
    return [node("Cast", [value], f"{value}.int32", to=6) for value in (before, total)]


def rotary(graph: Graph, rope: Rope, context: int) -> list[str]:
    """Cosines and sines, float32 [context, rotated values / 2].

    From constants alone, so onnxruntime computes them once when it loads; stored they would be 2 MB.
    Angles are brought within one turn in float64, since that of a late position has few digits left in
    float32; cosines of float64 are missing in onnxruntime 1.23.
    """
    node = graph.node
    half = np.arange(0, rope.dims, 2, dtype=np.float64)
    inverse = rope.theta ** (-half / rope.dims) / rope.scale
    if rope.factors:
        inverse /= np.asarray(rope.factors)
    ends = [
        graph.weight(f"rotary.{n}", np.array(v, np.float64))
        for n, v in (("start", 0), ("end", context), ("step", 1))
    ]
    positions = node("Range", ends, "rotary.positions")
    column = node("Unsqueeze", [positions, graph.integers([1])], "rotary.column")
    angles = node("Mul", [column, graph.weight("rotary.frequencies", inverse[None])], "rotary.angles")
    turn = graph.weight("rotary.turn", np.array(2 * np.pi))
    angles = node("Mod", [angles, turn], "rotary.within", fmod=1)
    angles = node("Cast", [angles], "rotary.float32", to=1)
    return [node(kind, [angles], f"rotary.{kind.lower()}") for kind in ("Cos", "Sin")]
