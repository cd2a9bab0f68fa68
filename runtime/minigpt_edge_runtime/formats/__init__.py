"""File formats: headers of GGUF and ONNX models, tokenizer files, latency reports."""
