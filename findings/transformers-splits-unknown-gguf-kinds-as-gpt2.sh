#!/usr/bin/env bash
# Expected: a GGUF file says in tokenizer.ggml.pre how its text is split before merges. transformers reads that key since its GGUF reader
#   was rewritten (integrations/gguf/gguf_tokenizer_mapping.py), so ids are llama.cpp's, or a kind that it does not know is an error, as it is
#   in llama.cpp ("unknown pre-tokenizer type").
# What happens: it knows 23 kinds. "smollm", "starcoder", "refact", "command-r", "codeshell" and "exaone", whose digits llama.cpp
#   takes out one by one first, are not among them, and get GPT-2's split, without a word. Digits themselves come out alike, since no merge of such a
#   vocabulary joins them; what changes is white space *before* a digit: GPT-2's split takes the last of two spaces for the digit, so an
#   indented or aligned number has other ids than the model was trained on.
#   (transformers 5.24.0, torch 2.13.0, tokenizers 0.23.3; xllamacpp 2026.10.11549, which carries llama.cpp; gguf 0.19.0; Linux x86-64)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
# transformers reads GGUF files with torch alone; its build without CUDA is small.
"$place/venv/bin/pip" install --quiet 'torch==2.13.0+cpu' 2>/dev/null ||
    "$place/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"$place/venv/bin/pip" install --quiet 'transformers==5.24.0' 'tokenizers==0.23.3' 'xllamacpp==2026.10.11549' 'gguf==0.19.0' numpy
cd "$place"
HF_HUB_OFFLINE=1 venv/bin/python - 2>/dev/null <<'PYTHON'
import json
import urllib.request
from importlib.metadata import version

import numpy as np
import xllamacpp
from gguf import GGUFWriter
from transformers import AutoTokenizer

print(*(f"{name} {version(name)}" for name in ("transformers", "tokenizers", "xllamacpp", "gguf")))
SPACE = "\u0120"  # how byte-level BPE writes a space
letters = [chr(code) for code in [*range(ord("!"), 127), *range(161, 173), *range(174, 256)]]
letters += [chr(256 + n) for n in range(256 - len(letters))]
tokens = [*letters, SPACE * 2, SPACE * 4]
size, width = len(tokens), 64

file = GGUFWriter("model.gguf", "llama")
for name, value in {"context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
                    "head_count": 2, "head_count_kv": 2, "rope_dimension_count": width // 2}.items():
    getattr(file, f"add_{name}")(value)
file.add_layer_norm_rms_eps(1e-5)
file.add_tokenizer_model("gpt2")
file.add_tokenizer_pre("smollm")
file.add_token_list(tokens)
file.add_token_types([1] * size)
file.add_token_merges([f"{SPACE} {SPACE}", f"{SPACE * 2} {SPACE * 2}"])
file.add_bos_token_id(0)
file.add_eos_token_id(0)
file.add_add_bos_token(False)
for name in ("token_embd", "output"):
    file.add_tensor(f"{name}.weight", np.zeros((size, width), np.float32))
for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
    file.add_tensor(f"{name}.weight", np.ones(width, np.float32))
for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
    file.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
file.write_header_to_file()
file.write_kv_data_to_file()
file.write_tensors_to_file()
file.close()

settings = xllamacpp.CommonParams()
settings.model.path = "model.gguf"
settings.n_ctx = 64
server = xllamacpp.Server(settings)
tokenizer = AutoTokenizer.from_pretrained(".", gguf_file="model.gguf")
same = {}
for text in ("x 7", "x    y", "x  7", "if x:\n    7"):
    data = json.dumps({"content": text, "add_special": False}).encode()
    request = urllib.request.Request(server.listening_address + "/tokenize", data, {"Content-Type": "application/json"})
    theirs = json.load(urllib.request.urlopen(request))["tokens"]
    ours = tokenizer.encode(text, add_special_tokens=False)
    same[text] = ours == theirs
    print(f"{text!r}: llama.cpp {[tokens[i] for i in theirs]}, transformers {[tokens[i] for i in ours]}")
print("the same:", same)
surprise = same["x 7"] and same["x    y"] and not same["x  7"] and not same["if x:\n    7"]
raise SystemExit(0 if surprise else "transformers splits 'smollm' as llama.cpp does now: remove this finding")
PYTHON
