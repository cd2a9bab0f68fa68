"""LoRA (arXiv 2106.09685) through peft: small matrices beside those of the blocks, merged in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minigpt_edge.models.archs import load_arch

if TYPE_CHECKING:
    from torch import nn

NAME = "recovery"  # peft's name of the adapter


class Adapter:
    """Adapters beside all linear matrices of a model's blocks, of any sizes; nothing else is trained.

    Attributes:
        trained: the adapters' matrices as one module, for training checkpoints.
        flops: operations per token of a training step beyond those of full training, negative: the gradients
            of the blocks' matrices are not computed, those of the adapters' are.
    """

    trained: nn.Module
    flops: float

    def __init__(self, model: Any, rank: int, seed: int) -> None:
        import torch
        from peft import LoraConfig, LoraModel
        from peft.tuners.lora import LoraLayer
        from torch import nn

        blocks = load_arch(model.config).blocks(model)
        linears = {id(m): m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)}
        names = [name for name, module in model.named_modules() if id(module) in linears]
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
        self._tuner = LoraModel(model, config, NAME)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.trained = nn.ModuleList(part[NAME] for layer in layers for part in (layer.lora_A, layer.lora_B))
        self.flops = 6.0 * sum(p.numel() for p in self.trained.parameters())
        self.flops -= 2.0 * sum(linear.weight.numel() for linear in linears.values())

    def merge(self) -> None:
        """Add the adapters' products to the model's matrices, which have their old names and shapes again."""
        self._tuner.merge_and_unload()
