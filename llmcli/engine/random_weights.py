"""A model with random weights, in the shape of any config: for measuring speed without a checkpoint."""

from __future__ import annotations

import torch

from llmcli.engine.transformer import EngineTransformer
from llmcli.model.config import ModelConfig

PATTERN = 2**20 + 7  # random numbers, which repeat to save time; an odd count, so that rows differ


def random_model(config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> EngineTransformer:
    """A model with norms at 1, biases at 0, and normally distributed weights with standard deviation 0.02."""
    with torch.device("meta"):
        model = EngineTransformer(config)
    model = model.to(dtype).to_empty(device=device)
    pattern = (0.02 * torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    offset = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0 - config.norm_offset)
            continue
        rest = parameter.view(-1)
        while len(rest):
            piece = pattern[offset : offset + len(rest)]
            rest[: len(piece)] = piece
            rest, offset = rest[len(piece) :], (offset + len(piece)) % PATTERN
    return model.eval()
