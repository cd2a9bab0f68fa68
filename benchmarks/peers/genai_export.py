"""Export a checkpoint with onnxruntime-genai's model builder (run inside the environment "genai").

    python genai_export.py CHECKPOINT OUT [KEY=VALUE …]

KEY=VALUE are the builder's own --extra_options. A uniform checkpoint goes through the builder as it is. The
builder's LLaMA class knows one width and one head count, so for blocks of different sizes it is subclassed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch_checkpoint import load_model


def main() -> None:
    """Write OUT/model.onnx, its data, genai_config.json and the tokenizer files."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((source / "config.json").read_text())
    sizes = config.pop("per_layer_config", None)
    from onnxruntime_genai.models import builder

    if sizes:
        builder.LlamaModel = per_block(builder.LlamaModel, sizes, source)
    with tempfile.TemporaryDirectory() as work:
        folder = source
        if sizes:  # transformers refuses to read one size from a config that has several
            folder = Path(work) / "checkpoint"
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
            (folder / "config.json").write_text(json.dumps(config))
        where = ("", str(folder), str(out), "int4", "cpu", str(Path(work) / "cache"))
        options = builder.parse_extra_options(*where, sys.argv[3:])
        builder.create_model(*where, **options)


def per_block(base: type, sizes: dict[str, dict[str, int]], source: Path) -> type:
    """The builder's class with the sizes of each block in place of the config's."""

    class PerBlock(base):  # type: ignore[valid-type, misc]
        def load_weights(self, input_path: str) -> Any:
            return load_model(source)

        def make_key_value_cache_shape(self, layer_id: int, shape: list[Any]) -> list[Any]:
            return [shape[0], sizes[str(layer_id)]["num_key_value_heads"], *shape[2:]]

        def make_layer(self, layer_id: int, layer: Any) -> None:
            size = sizes[str(layer_id)]
            self.intermediate_size = size["intermediate_size"]
            self.num_attn_heads, self.num_kv_heads = size["num_attention_heads"], size["num_key_value_heads"]
            self.q_size, self.kv_size = (
                self.num_attn_heads * self.head_size,
                self.num_kv_heads * self.head_size,
            )
            super().make_layer(layer_id, layer)

    return PerBlock


if __name__ == "__main__":
    main()
