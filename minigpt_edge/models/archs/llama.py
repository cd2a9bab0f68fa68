"""LLaMA and its relatives: RMSNorm, rotary positions, grouped-query attention, gated MLP."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: TID253 - only load_arch imports this file

from minigpt_edge.models.archs.base import Arch


class Llama(Arch):
    model_type, config_class, model_class = "llama", LlamaConfig, LlamaForCausalLM
    bias_keys = ("attention_bias", "mlp_bias")


ARCH = Llama()
