"""What all exports of a build have in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge.ship.reference import REFERENCE, reference_stage
from minigpt_edge.stages.device import CPU
from minigpt_edge.stages.stage import Stage
from minigpt_edge_runtime.formats.tokenizer_files import TOKENIZER

if TYPE_CHECKING:
    from minigpt_edge.stages.console import Log


F16 = "model-f16.gguf"


@dataclass(frozen=True)
class Export:
    """What all targets of a build have in common.

    Attributes:
        work: where stages are kept.
        checkpoint: the Hugging Face directory to export.
        importance: imatrix.safetensors, or None.
        text: the corpus stage: held-out texts for parity and choice.
        metadata: what a file says about itself: name, base_model, license.
        max_bytes: what no GGUF file may exceed; families fill it.
        device: where the passes that tell GPTQ how to round compute.
    """

    work: Path
    checkpoint: Path
    importance: Path | None
    text: Stage
    metadata: dict[str, str]
    threads: int
    log: Log
    max_bytes: int | None = None
    device: str = CPU

    def reference(self) -> Path:
        """The checkpoint's logits, computed once."""
        made = reference_stage(self.work, self.checkpoint, self.text, self.threads, self.log)
        return made.path / REFERENCE

    def held_out(self) -> list[str]:
        """All validation and test texts."""
        from minigpt_edge.data.corpus import read_split

        return read_split(self.text.path, "validation") + read_split(self.text.path, "test")

    def check(self, model: Path, kind: str, out: Path, *, tokens: bool) -> dict[str, Any]:
        """The parity gate; its figures go to `out`/parity.json, and to the work directory if it fails."""
        from minigpt_edge_export.verify import Tokenization, check

        # builds at once share the work directory
        evidence = self.work / f"parity-failure-{out.name.removesuffix('.partial')}.json"
        texts = Tokenization(self.checkpoint / TOKENIZER, self.held_out()) if tokens else None
        logits, token_parity = check(
            model,
            kind=kind,
            reference=self.reference(),
            evidence=evidence,
            threads=self.threads,
            tokenization=texts,
        )
        evidence.replace(out / "parity.json")
        figures = dataclasses.asdict(logits)
        return figures | ({"texts": token_parity.texts} if token_parity else {})
