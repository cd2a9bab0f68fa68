#!/usr/bin/env bash
# Expected: a GGUF file of Llama 3.1, 3.2 or 3.3 computes in transformers (`gguf_file=`) what it computes in llama.cpp, up to rounding. Their RoPE is
#   scaled by frequency (config.json: rope_type "llama3", factor 8 or 32), and convert_hf_to_gguf.py writes that as a tensor, rope_freqs.weight: the
#   divisor of each frequency, head_dim / 2 numbers. No metadata key repeats it.
# What happens: transformers takes RoPE from metadata alone (integrations/ggml.py: rope.freq_base and rope.dimension_count) and has no place for
#   the tensor; the model is built with rope_type "default", without a warning. Position 0 is the same; with every further token the
#   logits are more those of another model. A file with the tensor and one without give the same logits bit for bit, where
#   llama.cpp tells them apart. (A perplexity of such a file in transformers or lm-eval is not the file's.)
#   (transformers 5.24.0, torch 2.13.0; xllamacpp 2026.10.11549, which carries llama.cpp; gguf 0.19.0; Linux x86-64)
set -euo pipefail
place=$(mktemp -d) && trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
# Of torch the build without CUDA is enough.
"$place/venv/bin/pip" install --quiet 'torch==2.13.0+cpu' 2>/dev/null ||
    "$place/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0+cpu'
"$place/venv/bin/pip" install --quiet 'transformers==5.24.0' 'accelerate==1.15.0' 'xllamacpp==2026.10.11549' 'gguf==0.19.0' numpy
cd "$place"
HF_HUB_OFFLINE=1 venv/bin/python - 2>errors <<'PYTHON' || { status=$?; grep -v "^[0-9.]* [IW]" errors | tail -5; exit $status; }
import json
import math
import urllib.request
from importlib.metadata import version

import numpy as np
import torch
import xllamacpp
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM

print(*(f"{name} {version(name)}" for name in ("transformers", "torch", "xllamacpp", "gguf")))
letters = [chr(code) for code in [*range(ord("!"), 127), *range(161, 173), *range(174, 256)]]
letters += [chr(256 + n) for n in range(256 - len(letters))]  # how byte-level BPE writes the other bytes
size, width, heads, base, factor, trained, context = len(letters), 64, 2, 500_000.0, 32.0, 128, 512


def divisors():
    """llama3's, as convert_hf_to_gguf.py has them: low_freq_factor 1, high_freq_factor 4."""
    found = []
    for i in range(0, width // heads, 2):
        wave = 2 * math.pi * base ** (i / (width // heads))
        if wave < trained / 4:
            found.append(1.0)
        elif wave > trained:
            found.append(factor)
        else:
            smooth = (trained / wave - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)


def write(name, scaled):
    random = np.random.default_rng(0)
    file = GGUFWriter(name, "llama")
    for key, value in {"context_length": context, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
                       "head_count": heads, "head_count_kv": heads, "rope_dimension_count": width // heads, "rope_freq_base": base,
                       "vocab_size": size, "layer_norm_rms_eps": 1e-5, "tokenizer_model": "gpt2", "tokenizer_pre": "gpt-2",
                       "token_list": letters, "token_types": [1] * size, "token_merges": ["q x"], "bos_token_id": 0,
                       "eos_token_id": 0, "add_bos_token": False}.items():
        getattr(file, f"add_{key}")(value)
    for key in ("token_embd", "output"):
        file.add_tensor(f"{key}.weight", random.standard_normal((size, width)).astype(np.float32))
    for key in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        file.add_tensor(f"{key}.weight", np.ones(width, np.float32))
    for key in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        file.add_tensor(f"blk.0.{key}.weight", (random.standard_normal((width, width)) / 4).astype(np.float32))
    if scaled:
        file.add_tensor("rope_freqs.weight", divisors())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def in_transformers(name, ids):
    model = AutoModelForCausalLM.from_pretrained(".", gguf_file=name, dtype=torch.float32)
    print(f"transformers, {name}: rope_parameters {model.config.rope_parameters}")
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()


def in_llama_cpp(name, ids):
    settings = xllamacpp.CommonParams()
    settings.model.path = name
    settings.n_ctx = context
    server = xllamacpp.Server(settings)
    # A token that is whole text: of half a character the server gives no probabilities.
    body = {"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0, "grammar": "root ::= [a-z]"}
    request = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
    answer = json.load(urllib.request.urlopen(request))["completion_probabilities"][0]["top_logprobs"]
    found = np.full(size, np.nan, np.float32)
    found[[one["id"] for one in answer]] = [one["logprob"] for one in answer]
    return found


ids = np.random.default_rng(1).integers(33, 120, 400).tolist()
write("plain.gguf", False)
write("scaled.gguf", True)
found = {(tool.__name__, name): tool(f"{name}.gguf", ids) for tool in (in_transformers, in_llama_cpp) for name in ("plain", "scaled")}


def apart(one, other):
    """Largest difference of log probabilities of the token after 400 others, where both name it."""
    return float(np.nanmax(abs(found[one] - found[other])))


t, c = "in_transformers", "in_llama_cpp"
same_file = {name: apart((t, name), (c, name)) for name in ("plain", "scaled")}
tensor = {tool: apart((tool, "plain"), (tool, "scaled")) for tool in (t, c)}
print("transformers against llama.cpp, the same file:", same_file)
print("with the tensor against without:", tensor)
surprise = same_file["plain"] < 0.05 < 0.2 < same_file["scaled"] and tensor[t] == 0 and tensor[c] > 0.2
raise SystemExit(0 if surprise else "transformers reads rope_freqs.weight now: remove this finding")
PYTHON
