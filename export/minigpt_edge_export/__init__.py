"""Checkpoint directory -> model file. Reads safetensors with numpy; never imports torch.

`decoder` reads a checkpoint by the file of its architecture (`architectures`, one file each), `gguf` and
`onnx` write it, `targets` lists the types there are, and `verify` proves the file's logits and token ids.
"""
