"""A decoder as a GGUF file.

`write` writes it: metadata, tensors (`layout`) and tokenizer with its chat template (`tokenizer`).
`quantize` quantizes the file with llama.cpp, and `rounding` writes its blocks again by GPTQ; which type it
gets, Q4_0 or another, is chosen from `candidates`, and matrix by matrix in `mixed`.
"""
