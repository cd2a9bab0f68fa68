"""A torch checkpoint behind the runtime's engine interface, as far as scoring needs it.

Import this module inside functions: it needs torch at its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253

from minigpt_edge.evaluation.perplexity import pad
from minigpt_edge.models.checkpoint import is_large
from minigpt_edge.models.forward import head_of, hidden_states, load_fast
from minigpt_edge_export.tokens.special_tokens import end_ids
from minigpt_edge_runtime.engines.engine import Engine, Fork
from minigpt_edge_runtime.engines.text import TextCodec


class TorchEngine(Engine):
    """Scores as `engine.Engine` does, with one forward pass over everything instead of a cache.

    Args:
        directory: a checkpoint with its tokenizer.
        context_length: tokens at most; by default the model's own, at most 2,048.

    Raises:
        EdgeError: the checkpoint is damaged or unknown.
    """

    def __init__(self, directory: Path, context_length: int | None = None, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.text = TextCodec(directory, end_ids(directory))
        self.model: Any = load_fast(directory, lazy=is_large(directory))
        config: Any = self.model.config
        longest = int(config.max_position_embeddings)
        self.context_length = min(longest, context_length or 2048)
        self.vocab_size = int(config.vocab_size)
        self._tokens: list[int] = []

    @property
    def cached(self) -> int:  # type: ignore[override]
        return len(self._tokens)

    def document_start(self, text: str | None = None) -> int:
        return self.text.document_start(text or self.model.minigpt_edge.get("document_start"))

    def keep(self, count: int) -> None:
        if not 0 <= count <= len(self._tokens):
            raise ValueError(f"{count} tokens can't be kept of {len(self._tokens)}")
        self._tokens = self._tokens[:count]

    def eval(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens; the last one's logits, float32 [vocab]."""
        self._check(len(tokens))
        self._tokens += tokens
        return self._logits([self._tokens], [len(self._tokens) - 1])[0][0]

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits of every token from an empty cache, float32 [n, vocab]."""
        self.reset()
        self._check(len(tokens))
        self._tokens = list(tokens)
        yield self._logits([self._tokens], [0])[0]

    def forks(self, forks: Sequence[Fork]) -> Iterator[tuple[int, int, int, np.ndarray]]:
        """Logits that predict texts' continuations: (fork, branch, 0, float32 [n, vocab])."""
        self.reset()
        for index, (beginning, branches) in enumerate(forks):
            wanted = [at for at, branch in enumerate(branches) if branch]
            texts = [[*beginning, *branches[at][:-1]] for at in wanted]
            for text in texts:
                self._check(len(text))
            found = self._logits(texts, [len(beginning) - 1] * len(texts))
            for at, rows in zip(wanted, found, strict=True):
                yield index, at, 0, rows

    def description(self) -> dict[str, object]:
        return {"name": "torch", "package": f"torch {torch.__version__}", "system_info": ""}

    def close(self) -> None:
        self.model = None

    def _check(self, count: int) -> None:
        if len(self._tokens) + count > self.context_length:
            raise ValueError(
                f"{len(self._tokens) + count} tokens do not fit into the context of {self.context_length}"
            )

    def _logits(self, texts: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
        """Logits of each text's tokens from `first` on."""
        if not texts:
            return []
        with torch.inference_mode():
            hidden = hidden_states(self.model, pad(texts))
            found = []
            for row, text in enumerate(texts):
                read, weight = head_of(self.model, hidden[row, first[row] : len(text)])
                found.append((read @ weight.to(read.dtype).t()).float().cpu().numpy())
        return found
