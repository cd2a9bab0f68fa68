#!/usr/bin/env bash
# Expected: mlx-lm rotates a LLaMA checkpoint with the base that its config.json states. transformers 5 states it as
#   rope_parameters.rope_theta, and nowhere else (source: what LlamaConfig.save_pretrained writes; mlx-lm's qwen3.py reads it there:
#   "transformers >= 5 nests rope_theta and rope_scaling under rope_parameters").
# What happens: mlx_lm/models/llama.py has `rope_theta: float = 10000` and no rope_parameters, unknown keys are dropped, and the
#   model computes with base 10,000 and without llama3 scaling, without a word. With the same values at the top level it is right.
#   (mlx-lm 0.32.2, mlx 0.32.4 for CPU, transformers 5.24.0, Linux x86-64)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'mlx[cpu]==0.32.4' 'mlx-lm==0.32.2' 'transformers==5.24.0'
cd "$place"
venv/bin/python - <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model
from transformers import LlamaConfig

print("mlx-lm", version("mlx-lm"), "mlx", version("mlx"), "transformers", version("transformers"))
folder = Path("model")
LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=100, max_position_embeddings=512, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
).save_pretrained(folder)
config = json.loads((folder / "config.json").read_text())
print("transformers wrote: rope_theta", config.get("rope_theta"), "rope_parameters", config.get("rope_parameters"))

mx.random.seed(1)
shapes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
          "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
weights = {"model.embed_tokens.weight": mx.random.normal((100, 64)), "model.norm.weight": mx.ones(64)}
for block in ("model.layers.0.", "model.layers.1."):
    weights |= {f"{block}{name}.weight": mx.random.normal(shape) * 0.3 for name, shape in shapes.items()}
    weights |= {f"{block}{name}.weight": mx.ones(64) for name in ("input_layernorm", "post_attention_layernorm")}
mx.save_safetensors(str(folder / "model.safetensors"), weights)


def logits(**changed):
    (folder / "config.json").write_text(json.dumps({**config, **changed}))
    model, _ = load_model(folder)
    return model(mx.arange(1, 65)[None])


as_written, stated, ten_thousand = logits(), logits(rope_theta=500000.0), logits(rope_theta=10000.0)


def apart(a, b):
    return mx.abs(a - b).max().item()


print(f"logits of the config as written: {apart(as_written, stated):.3f} from base 500,000, "
      f"{apart(as_written, ten_thousand):.3f} from base 10,000")
surprise = apart(as_written, ten_thousand) < 1e-5 < 0.1 < apart(as_written, stated)
raise SystemExit(0 if surprise else "mlx-lm reads rope_parameters of LLaMA models now: remove this finding")
PYTHON
