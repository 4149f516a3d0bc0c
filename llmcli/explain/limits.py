"""How far two ways to the same numbers may part: what rounding adds up to, in shares of the numbers' size."""

from __future__ import annotations

import torch

from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import rounding

BY_DTYPE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Rounded weights round activations to 8 bits too: a last bit moves one to the next of 255 steps. And 4-bit weights
# round only those of many tokens together.
ROUNDED = 1e-1
# Where a last bit can tip the choice between two experts, what they say is exchanged. Another text's logits are at 1.4.
TIPPED = 3e-1


def limit(model: Transformer) -> float:
    """What to allow the model, by its dtype and by how its weights are kept."""
    rounded = rounding(model) is not None
    if model.config.moe is not None and (rounded or model.dtype != torch.float32):
        return TIPPED
    return max(BY_DTYPE[model.dtype], ROUNDED if rounded else 0.0)
