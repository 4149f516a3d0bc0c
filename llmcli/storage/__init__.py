"""Checkpoints to models and back: safetensors, quantized weights, LoRA, fingerprints, slices for ranks."""
