"""How large a file will be, and how fast it decodes, before any of its weights exists."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt_edge_export.targets import Target
from minigpt_edge_runtime.errors import UsageError

if TYPE_CHECKING:
    from minigpt_edge_export.decoder import Decoder

Blocks = Sequence[tuple[int, int]]


class SizeModel:
    """The files that a dense model would become if its blocks and vocabulary had other sizes.

    Sizes of blocks are given as (FFN width, KV groups), first block to last; there may be fewer than the
    dense model has. A family such as gguf-q4 is taken at the smallest type that is worth trying on the dense
    model: what it chooses later meets the same bytes.

    Attributes:
        kind: the type that is estimated with.
    """

    def __init__(
        self,
        base: Path,
        tokenizer_dir: Path,
        target: Target,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            base: checkpoint directory of the dense model.
            tokenizer_dir: the tokenizer's files, config.json and generation_config.json as the file will have
                them: token ids in those configs are the trimmed vocabulary's.
            config: the model's as it will be, if pruning gives its matrices biases; None for the base's.

        Raises:
            UsageError: the target is not GGUF.
        """
        from minigpt_edge_export.decoder import read_checkpoint
        from minigpt_edge_export.gguf.candidates import candidates
        from minigpt_edge_export.gguf.quantize import expected_bytes, expected_types

        if target.format != "gguf":
            raise UsageError(
                f"the size of {target.name} can't be predicted", "--max-size works with GGUF targets"
            )
        self._dense = read_checkpoint(base)
        architecture = self._dense.architecture
        self._style = architecture.style_of(config, str(base)) if config else self._dense.style
        self._tokenizer_dir = tokenizer_dir
        self._tokenizers: dict[int, int] = {}
        self.kind = min(
            candidates(target, self._dense),
            key=lambda kind: expected_bytes(self._dense, expected_types(self._dense, kind)),
        )

    def tokenizer_bytes(self, vocab_size: int, directory: Path) -> int:
        """What the tokenizer of a directory adds to the file; EdgeError as `file_bytes`."""
        from minigpt_edge_export.gguf.tokenizer import read_tokenizer
        from minigpt_edge_export.gguf.write import tokenizer_bytes

        return tokenizer_bytes(read_tokenizer(directory, vocab_size))

    def file_bytes(self, vocab_size: int, blocks: Blocks, tokenizer: int | None = None) -> int:
        """The size of the file, to the byte.

        Args:
            tokenizer: bytes of another tokenizer than that of the directory.

        Raises:
            EdgeError: the tokenizer's files are missing, damaged, or of more than `vocab_size` tokens.
        """
        from minigpt_edge_export.gguf.quantize import padded
        from minigpt_edge_export.gguf.write import write_outline

        if tokenizer is None:
            if vocab_size not in self._tokenizers:
                self._tokenizers[vocab_size] = self.tokenizer_bytes(vocab_size, self._tokenizer_dir)
            tokenizer = self._tokenizers[vocab_size]
        decoder = self._decoder(vocab_size, blocks)
        with tempfile.TemporaryDirectory() as folder:
            header = write_outline(decoder, Path(folder) / "outline.gguf")
        weights = sum(padded(size) for size in self._sizes(decoder).values())
        return padded(header + tokenizer) + weights

    def decode_bytes(self, vocab_size: int, blocks: Blocks) -> int:
        """Bytes read for each decoded token: all matrices, of the embedding only what serves as head."""
        return self._read(self._decoder(vocab_size, blocks))

    def speedup(self, vocab_size: int, blocks: Blocks) -> float:
        """Decoded tokens/s ÷ the dense model's at the same type, if decoding is memory-bandwidth-bound."""
        return self._read(self._dense) / self.decode_bytes(vocab_size, blocks)

    def _read(self, decoder: Decoder) -> int:
        from minigpt_edge_export.gguf.layout import tensor_shapes
        from minigpt_edge_runtime.formats.gguf_names import EMBEDDING

        shapes, sizes = tensor_shapes(decoder), self._sizes(decoder)
        looked_up = None if decoder.tied else EMBEDDING
        return sum(size for name, size in sizes.items() if len(shapes[name]) > 1 and name != looked_up)

    def _sizes(self, decoder: Decoder) -> dict[str, int]:
        from minigpt_edge_export.gguf.quantize import expected_sizes, expected_types

        return expected_sizes(decoder, expected_types(decoder, self.kind))

    def _decoder(self, vocab_size: int, blocks: Blocks) -> Decoder:
        from minigpt_edge_export.decoder import Block

        shared = self._dense.blocks[0].heads // self._dense.blocks[0].kv_heads
        sizes = tuple(Block(width, groups * shared, groups) for width, groups in blocks)
        return dataclasses.replace(self._dense, vocab_size=vocab_size, blocks=sizes, style=self._style)
