"""A model of any shape without a checkpoint: random weights, for measuring speed and for nothing else."""

from __future__ import annotations

import torch

from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer

PATTERN = 2**20 + 7  # random numbers, repeated: as good for speed, and there at once; odd, so that no two rows agree


def random_model(config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> Transformer:
    """Norms at 1, biases at 0, all else from a normal distribution of deviation 0.02."""
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device)
    pattern = (0.02 * torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))).to(device, dtype)
    place = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0 - config.norm_offset)
            continue
        rest = parameter.view(-1)
        while len(rest):
            piece = pattern[place : place + len(rest)]
            rest[: len(piece)] = piece
            rest, place = rest[len(piece) :], (place + len(piece)) % PATTERN
    return model.eval()
