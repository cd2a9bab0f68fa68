"""What a matrix reads in a backward pass, by how much each token matters to the loss.

A change E of a matrix changes its output by E x. To second order the loss then rises by 1/2 (g^T E x)^2,
where g is the gradient of the loss at that output, with labels sampled from the model itself. With all
outputs alike that is |g|^2 |E x|^2: |g|^2 is a token's weight, as in GuidedQuant (arXiv 2505.07004) with one
group of outputs. It differs by hundreds, most for the first token of a window.
"""

from __future__ import annotations

from functools import partial

import torch  # noqa: TID253 - imported by the pipeline's prune stage only
from torch import Tensor, nn  # noqa: TID253

from minigpt_edge.models.precision import compute_dtype, without_autocast
from minigpt_edge.prune.moments import add_gram, mirror


class WeightedGram:
    """Hooks on one matrix that sum its inputs' outer products, each times its output's squared gradient.

    Args:
        linear: called with inputs [..., units]; its output has to get a gradient.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self.linear, self._dtype = linear, compute_dtype()  # a backward pass may not know the device
        self._gram = torch.zeros(linear.in_features, linear.in_features)
        self._weight = 0.0
        self._handle = linear.register_forward_hook(self._forward)

    def mean(self) -> Tensor:
        """The weighted mean of x x^T, float32 [units, units], when the pass is over; zeros without a
        gradient."""
        self._handle.remove()
        mirror(self._gram)
        return self._gram.div_(self._weight or 1.0)

    def _forward(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(partial(self._backward, inputs[0].detach().flatten(0, -2)))

    def _backward(self, read: Tensor, gradient: Tensor) -> None:
        with without_autocast(gradient):
            self._add(read, gradient.flatten(0, -2))

    def _add(self, read: Tensor, gradient: Tensor) -> None:
        """Add inputs [tokens, units] and gradients [tokens, outputs]."""
        size = gradient.float().square().sum(-1, keepdim=True)
        self._weight += float(size.sum())
        add_gram(self._gram, (read * size.sqrt()).to(self._dtype))
