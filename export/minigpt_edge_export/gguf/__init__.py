"""A decoder as a GGUF file.

`write` writes it: metadata, tensors (`layout`) and tokenizer with its chat template (`tokenizer`).
`quantize` quantizes the file with llama.cpp; which type it gets, Q4_0 or another, is chosen from
`candidates`, and matrix by matrix in `mixed`.
"""
