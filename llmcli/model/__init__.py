"""The reference: token ids in, logits out, in plain PyTorch, for every family."""
