"""Tokenizers as the metadata of GGUF files (llama.cpp), read and written."""
