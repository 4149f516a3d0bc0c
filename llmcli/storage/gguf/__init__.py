"""GGUF files (llama.cpp): reading their weights, and writing a model as one."""
