"""Write a checkpoint as this project's ONNX (run inside the project's environment).

    python project_export.py CHECKPOINT OUT PRECISION [IMATRIX TEXTS]

PRECISION is a name of minigpt_edge_export.targets.PRECISIONS, IMATRIX the build's imatrix.safetensors,
TEXTS a file in the corpus stage's directory, whose training text is what the build calibrates on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt_edge.ship.grams import weighted_grams
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import imatrix_from_file
from minigpt_edge_export.onnx.gptq import pack_matrices
from minigpt_edge_export.onnx.weights import Packed
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import PRECISIONS
from minigpt_edge_runtime.engines.open import default_threads


def main() -> None:
    """Write the directory OUT."""
    source, out, name, *data = sys.argv[1:]
    decoder, imatrix, packed = read_checkpoint(Path(source)), None, dict[str, Packed]()
    if data:
        imatrix = imatrix_from_file(Path(data[0]))
        for grams in weighted_grams(Path(source), Path(data[1]).parent, default_threads()):
            packed |= pack_matrices(decoder, PRECISIONS[name], grams)
    write_onnx(decoder, Path(out), PRECISIONS[name], imatrix=imatrix, packed=packed)


if __name__ == "__main__":
    main()
