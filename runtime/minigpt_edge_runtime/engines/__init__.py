"""What runs a model file: llama.cpp and onnxruntime behind one interface."""
