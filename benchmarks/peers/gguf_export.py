"""Write a checkpoint as GGUF Q4_0 (run inside the project's environment).

python gguf_export.py CHECKPOINT OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import quantize
from minigpt_edge_export.gguf.write import write_gguf


def main() -> None:
    """Write OUT/model.gguf."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True)
    full = out / "f16.gguf"
    write_gguf(read_checkpoint(source), full)
    quantize(full, out / "model.gguf", "q4_0")
    full.unlink()


if __name__ == "__main__":
    main()
