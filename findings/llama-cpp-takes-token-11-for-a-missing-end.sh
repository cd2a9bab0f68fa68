#!/usr/bin/env bash
# Expected: a GGUF file with a byte-level BPE vocabulary that names no BOS and no EOS token has neither (source: GGUF's
#   specification lists tokenizer.ggml.bos_token_id and eos_token_id as optional; a checkpoint may well have bos_token null, as Qwen2's).
# What happens: llama.cpp takes token 11 for both, whatever it is (src/llama-vocab.cpp sets special_bos_id = special_eos_id = 11 for
#   tokenizer.ggml.model "gpt2"; 11 is "<|endoftext|>" in Falcon's vocabulary). Here token 11 is the letter "h":
#   the template's bos_token is "h", and an answer ends where the model says "h". Nothing is printed about it.
#   (xllamacpp 2026.10.11549, which carries llama.cpp; gguf 0.19.0; Linux x86-64)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet 'xllamacpp==2026.10.11549' 'gguf==0.19.0' numpy
cd "$place"
venv/bin/python - 2>/dev/null <<'PYTHON'
import json
import urllib.request
from importlib.metadata import version

import numpy as np
import xllamacpp
from gguf import GGUFWriter

print("xllamacpp", version("xllamacpp"), "gguf", version("gguf"))
letters = [chr(code) for code in [*range(ord("!"), 127), *range(161, 173), *range(174, 256)]]
letters += [chr(256 + n) for n in range(256 - len(letters))]  # how byte-level BPE writes the other bytes
letters.remove("h")
tokens = [*letters[:11], "h", *letters[11:]]
size, width = len(tokens), 64

file = GGUFWriter("model.gguf", "llama")
for name, value in {"context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
                    "head_count": 2, "head_count_kv": 2, "rope_dimension_count": width // 2}.items():
    getattr(file, f"add_{name}")(value)
file.add_layer_norm_rms_eps(1e-5)
file.add_tokenizer_model("gpt2")
file.add_tokenizer_pre("gpt-2")
file.add_token_list(tokens)
file.add_token_types([1] * size)
file.add_token_merges(["q x"])
random = np.random.default_rng(0)
embedding = random.standard_normal((size, width), dtype=np.float32)
head = np.zeros((size, width), np.float32)
head[11] = embedding[tokens.index("a")]  # after an "a" the model says "h"
file.add_tensor("token_embd.weight", embedding)
file.add_tensor("output.weight", head)
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


def ask(path, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(server.listening_address + path, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


names = {name: ask("/props").get(name) for name in ("bos_token", "eos_token")}
answer = ask("/completion", prompt="a", n_predict=8, temperature=0)
print("the file names no BOS and no EOS; llama.cpp says", names)
print("answer to 'a':", repr(answer["content"]), "stopped by", answer["stop_type"], "after", answer["tokens_predicted"], "token(s)")
surprise = names == {"bos_token": "h", "eos_token": "h"} and answer["stop_type"] == "eos"
raise SystemExit(0 if surprise else "llama.cpp leaves a missing BOS and EOS unset now: remove this finding")
PYTHON
