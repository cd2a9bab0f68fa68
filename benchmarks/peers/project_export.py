"""Write a checkpoint as this project's ONNX (run inside the project's environment).

    python project_export.py CHECKPOINT OUT PRECISION [IMATRIX]

PRECISION is a name of minigpt_edge_export.targets.PRECISIONS, IMATRIX the build's imatrix.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

from minigpt_edge_export.onnx import write_onnx
from minigpt_edge_export.quantize import imatrix_from_file
from minigpt_edge_export.spec import read_checkpoint
from minigpt_edge_export.targets import PRECISIONS


def main() -> None:
    """Write the directory OUT."""
    source, out, name, *importance = sys.argv[1:]
    imatrix = imatrix_from_file(Path(importance[0])) if importance else None
    write_onnx(read_checkpoint(Path(source)), Path(out), PRECISIONS[name], imatrix=imatrix)


if __name__ == "__main__":
    main()
