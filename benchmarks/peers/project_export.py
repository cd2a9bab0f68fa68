"""Write a checkpoint as this project's ONNX (run inside the project's environment).

    python project_export.py CHECKPOINT OUT PRECISION [IMATRIX TEXTS]

PRECISION is a name of minigpt_edge_export.targets.PRECISIONS, IMATRIX the build's imatrix.safetensors,
TEXTS a file in the corpus stage's directory, whose training text is what the build calibrates on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt_edge.ship.export_stages import calibration_sequences
from minigpt_edge_export.decoder import read_checkpoint
from minigpt_edge_export.gguf.quantize import imatrix_from_file
from minigpt_edge_export.onnx.grams import collect_grams
from minigpt_edge_export.onnx.write import write_onnx
from minigpt_edge_export.targets import PRECISIONS
from minigpt_edge_runtime.engines.open import default_threads


def main() -> None:
    """Write the directory OUT."""
    source, out, name, *data = sys.argv[1:]
    decoder, imatrix, grams = read_checkpoint(Path(source)), None, None
    if data:
        imatrix = imatrix_from_file(Path(data[0]))
        sequences = calibration_sequences(Path(source), Path(data[1]).parent)
        grams = collect_grams(decoder, sequences, Path(out).parent, default_threads())
    write_onnx(decoder, Path(out), PRECISIONS[name], imatrix=imatrix, grams=grams)


if __name__ == "__main__":
    main()
