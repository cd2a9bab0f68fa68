"""Time one GGUF file in this process, through the project's llama.cpp engine.

python run_gguf.py FILE [--threads N] …
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from timing import arguments, run


class LlamaModel:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, threads: int, room: int) -> None:
        from minigpt_edge_runtime.engines.open import open_engine

        self._engine = open_engine(path, room, threads)
        self.vocab_size = self._engine.vocab_size
        self.versions = {key: str(value) for key, value in self._engine.description().items()}

    def prefill(self, tokens: list[int]) -> int:
        self._engine.reset()
        return self._pick(tokens)

    def step(self, token: int) -> int:
        return self._pick([token])

    def _pick(self, tokens: list[int]) -> int:
        self.logits = self._engine.eval(tokens)
        return int(self.logits.argmax())


def main() -> None:
    """The command line."""
    given = arguments("Time one GGUF file.")
    run(partial(LlamaModel, given.model, given.threads), given)


if __name__ == "__main__":
    main()
