"""A decoder as an ONNX directory.

`write` builds the graph, `weights` and `gptq` make its integers, `genai` says how to run it.
"""
