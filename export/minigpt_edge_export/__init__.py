"""Checkpoint directory -> model file. Reads safetensors with numpy; never imports torch."""
