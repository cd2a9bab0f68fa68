"""Export a checkpoint with transformers.exporters (run inside the environment "genai"), in float32 and int4.

    python exporters_export.py CHECKPOINT OUT

Writes OUT/fp32/model.onnx: the exporter's "decode" component for several tokens at once, so that it does
prefill too, with onnxruntime's CPU fusions; and OUT/int4/model.onnx: the same through MatMulNBitsQuantizer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch_checkpoint import load_model


def main() -> None:
    """The command line."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    export(source, out / "fp32")
    quantize(out / "fp32", out / "int4", block_size=32)


def export(checkpoint: Path, out: Path) -> None:
    """torch.export, onnxscript, fusions; no "prefill" component, it would hold the weights again."""
    import torch
    from transformers import GenerationConfig
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    from transformers.exporters.utils import decompose_for_generation

    inputs = {
        "input_ids": torch.arange(3, 19)[None],
        "attention_mask": torch.ones(1, 16, dtype=torch.int64),
    }
    components: dict[str, Any] = decompose_for_generation(
        load_model(checkpoint),
        inputs,
        generation_config=GenerationConfig(do_sample=False, eos_token_id=2, pad_token_id=2),
        multi_token_decode=True,
    )
    config = OnnxConfig(dynamic=True, ort_fusions="cpu")
    out.mkdir(parents=True)
    model, step = components["decode"]
    OnnxExporter().export(model, step, config).save_pretrained(out)


def quantize(source: Path, out: Path, block_size: int) -> None:
    """MatMul and Gather to 4 bits with onnxruntime's quantizer."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(source / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "FusedMatMul":  # the tied head, transB=1: the quantizer knows MatMul only
            head = numpy_helper.to_array(tensors[node.input[1]]).T.copy()
            model.graph.initializer.append(numpy_helper.from_array(head, "head"))
            node.op_type, node.domain, node.input[1] = "MatMul", "", "head"
            del node.attribute[:]
    out.mkdir(parents=True, exist_ok=True)
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=block_size,
        is_symmetric=True,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), use_external_data_format=True)


if __name__ == "__main__":
    main()
