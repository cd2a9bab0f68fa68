#!/usr/bin/env bash
# Expected: the gguf package is published from llama.cpp's repository, so that its newest release reads what llama.cpp of the same weeks loads. A
#   type that it can't dequantize would still be listed (it lists Q1_0, say), and the other tensors of the file be read.
# What happens: llama.cpp has the type Q2_0 (42). The newest gguf on PyPI does not know the number, and GGUFReader raises
#   "np.uint32(42) is not a valid GGMLQuantizationType" for the whole file: no field and no other tensor can be read. llama.cpp loads that file and answers.
#   So gguf-dump, gguf-set-metadata and whatever else is built on the reader fail for it too; one's own reader of headers is the way around.
#   (gguf 0.19.0; xllamacpp 2026.10.11549, which carries llama.cpp; Linux x86-64. Source: gguf/constants.py, GGMLQuantizationType, and ggml.h, ggml_type)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'xllamacpp==2026.10.11549' 'gguf==0.19.0' numpy
cd "$place"
venv/bin/python - 2>/dev/null <<'PYTHON'
import json
import struct
import urllib.request
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xllamacpp
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

print(*(f"{name} {version(name)}" for name in ("xllamacpp", "gguf")))
letters = [chr(code) for code in [*range(ord("!"), 127), *range(161, 173), *range(174, 256)]]
tokens = [*letters, *(chr(256 + n) for n in range(256 - len(letters))), "he"]
size, width, name = len(tokens), 64, "blk.0.ffn_up.weight"

file = GGUFWriter("model.gguf", "llama")
for key, value in {"context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
                   "head_count": 2, "head_count_kv": 2, "rope_dimension_count": width // 2}.items():
    getattr(file, f"add_{key}")(value)
file.add_layer_norm_rms_eps(1e-5)
file.add_tokenizer_model("gpt2")
file.add_tokenizer_pre("gpt-2")
file.add_token_list(tokens)
file.add_token_types([1] * size)
file.add_token_merges(["h e"])
file.add_bos_token_id(0)
file.add_eos_token_id(0)
noise = np.random.default_rng(0)
for table in ("token_embd", "output"):
    file.add_tensor(f"{table}.weight", noise.normal(size=(size, width)).astype(np.float32))
for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    file.add_tensor(f"{norm}.weight", np.ones(width, np.float32))
for matrix in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down"):
    file.add_tensor(f"blk.0.{matrix}.weight", noise.normal(size=(width, width)).astype(np.float32))
# A block of Q2_0 is 64 weights in 18 bytes: a float16 scale, then two bits each. So many bytes has a row of 32 weights in Q4_0, a type
# that the writer knows; the header is put right below.
block = np.frombuffer(np.float16(0.5).tobytes() + bytes(range(16)), np.uint8)
file.add_tensor(name, np.tile(block, (width, 1)), raw_dtype=GGMLQuantizationType.Q4_0)
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()
content = Path("model.gguf").read_bytes()
assert len(GGUFReader("model.gguf").tensors) == 12  # as long as the type is one that it knows
text = struct.pack("<Q", len(name)) + name.encode()
before = text + struct.pack("<IQQI", 2, 32, width, int(GGMLQuantizationType.Q4_0))
after = text + struct.pack("<IQQI", 2, width, width, int(xllamacpp.ggml_type.GGML_TYPE_Q2_0))
assert content.count(before) == 1
Path("model.gguf").write_bytes(content.replace(before, after))

settings = xllamacpp.CommonParams()
settings.model.path = "model.gguf"
settings.n_ctx = 64
server = xllamacpp.Server(settings)
data = json.dumps({"prompt": "hello", "n_predict": 4, "temperature": 0, "ignore_eos": True}).encode()
request = urllib.request.Request(server.listening_address + "/completion", data, {"Content-Type": "application/json"})
answer = json.load(urllib.request.urlopen(request))
print("llama.cpp:", answer["tokens_predicted"], "tokens,", ascii(answer["content"]))
try:
    print("gguf:", len(GGUFReader("model.gguf").tensors), "tensors")
    error = ""
except ValueError as raised:
    error = str(raised)
    print("gguf: ValueError:", error)
surprise = answer["tokens_predicted"] == 4 and "is not a valid GGMLQuantizationType" in error
raise SystemExit(0 if surprise else "gguf reads a file with Q2_0 now: remove this finding")
PYTHON
