"""Export a uniform checkpoint as optimum-onnx's users do (run inside the environment "optimum").

    python optimum_export.py CHECKPOINT OUT

`optimum-cli export onnx`, then `optimum-cli onnxruntime quantize` (int8, activations quantized at run time).
Writes OUT/model_quantized.onnx; the float32 export is a temporary one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CLI = Path(sys.executable).with_name("optimum-cli")


def main() -> None:
    """The command line."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as work:
        checkpoint, exported = Path(work) / "checkpoint", Path(work) / "exported"
        shutil.copytree(source, checkpoint)
        downgrade(checkpoint)
        run("export", "onnx", "--model", checkpoint, "--task", "text-generation-with-past", exported)
        run("onnxruntime", "quantize", "--onnx_model", exported, instruction_set(), "--output", out)


def downgrade(checkpoint: Path) -> None:
    """Give the config the names that transformers before version 5 reads; it would take the default theta."""
    path = checkpoint / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters", None)
    if rope:
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype", "float32")
    path.write_text(json.dumps(config))


def instruction_set() -> str:
    """The quantization preset for this CPU."""
    info = Path("/proc/cpuinfo").read_text()
    return "--avx512_vnni" if "avx512_vnni" in info else "--arm64" if "asimd" in info else "--avx2"


def run(*arguments: object) -> None:
    """One optimum-cli command; its failure is this script's."""
    subprocess.run([str(CLI), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
