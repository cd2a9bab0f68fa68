"""GPT-NeoX (Pythia): transformers 5 renames its head when it reads a checkpoint.

Only load_arch imports this file: `joined` imports torch (noqa: TID253).
"""

from __future__ import annotations

from minigpt_edge.models.archs import joined


class Arch(joined.Arch):
    renamed = {"head": "lm_head"}
