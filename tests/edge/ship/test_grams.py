"""What GPTQ rounds by, against gradients that torch finds on the whole model at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: TID253
from finetune_helpers import make_checkpoint, make_corpus
from torch import Tensor  # noqa: TID253

from minigpt_edge.models.checkpoint import load_model
from minigpt_edge.prune import backward, weighted
from minigpt_edge.ship.grams import weighted_grams
from minigpt_edge_export.decoder import read_checkpoint


def by_autograd(model: Any, ids: Tensor, names: dict[str, str]) -> dict[str, np.ndarray]:
    """Means over tokens of |g|^2 x x^T, by that of |g|^2, from transformers' own loss; canonical names."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            seen[name] = inputs[0].detach(), output

        return model.get_submodule(names[name]).register_forward_hook(hook)

    handles = [watch(name) for name in names]
    (model(input_ids=ids, labels=ids).loss * ids[:, 1:].numel()).backward()  # the mean becomes a sum
    for handle in handles:
        handle.remove()
    found = {}
    for name, (read, output) in seen.items():
        assert output.grad is not None
        weight = output.grad.square().sum(-1).flatten()
        rows = read.flatten(0, 1)
        found[name] = (rows.t() @ (weight[:, None] * rows) / weight.sum()).numpy()
    return found


def test_tokens_count_by_their_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[Tensor] = []

    def with_text(_seed: int) -> backward.Label:
        """The labels are the text's own, so that any program finds the same gradients."""
        return lambda _, labels: labels

    def embedded(arch: Any, model: Any, windows: Tensor) -> Any:
        passed.append(windows)
        return forward(arch, model, windows)

    forward = backward._forward
    monkeypatch.setattr(backward, "compute_dtype", lambda: torch.float32)  # exact, to compare
    monkeypatch.setattr(weighted, "compute_dtype", lambda: torch.float32)
    monkeypatch.setattr(backward, "sampled", with_text)
    monkeypatch.setattr(backward, "_forward", embedded)
    checkpoint, corpus = make_checkpoint(tmp_path / "model", unequal=True), tmp_path / "corpus"
    make_corpus(corpus)
    blocks = list(weighted_grams(checkpoint, corpus, 1))
    (ids,) = passed
    assert ids.shape == (8192 // 256, 256)
    decoder = read_checkpoint(checkpoint)
    matrices = [n for n, shape in decoder.shapes().items() if n.startswith("blocks.") and len(shape) == 2]
    names = {name: decoder.source_name(name).removesuffix(".weight") for name in matrices}
    expected = by_autograd(load_model(checkpoint), ids, names)
    assert [{name.split(".")[1] for name in block} for block in blocks] == [{"1"}, {"0"}]
    found = {name: gram for block in blocks for name, gram in block.items()}
    assert found.keys() == expected.keys()
    for name, gram in found.items():
        np.testing.assert_allclose(
            gram, expected[name], rtol=2e-3, atol=2e-4 * float(np.abs(expected[name]).max())
        )
