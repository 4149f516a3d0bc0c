"""The optimizers, which parameters each updates, and the learning rate schedule."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from llmcli.model.transformer import Transformer
from llmcli.train.recipe import Recipe


def initialize(model: Transformer, seed: int) -> None:
    """Initialize the weights as GPT-2 does, but with zero output projections, so that each block is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)  # norms; a new model has no biases
            elif name.endswith(("attn.out.weight", "mlp.down.weight")):
                parameter.zero_()
            else:
                parameter.normal_(std=0.02, generator=generator)


def create_optimizers(model: Transformer, recipe: Recipe) -> list[Optimizer]:
    """Return Muon (Jordan et al. 2024) for the blocks' matrices and AdamW for the rest, or AdamW for all.

    Muon's updates are scaled to the size of AdamW's, so one learning rate serves both.
    """
    # The kernels of convolutions are vectors of their own, one for each feature.
    matrices = [p for name, p in model.blocks.named_parameters() if p.ndim == 2 and not name.endswith(".kernel")]
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in matrix_ids]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        return [AdamW(groups, lr=rate, betas=(0.9, 0.95))]
    return [
        Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate of one step: linear warmup, constant, linear decay to zero."""
    done = step / recipe.steps
    rising = (step + 1) / max(1.0, recipe.warmup * recipe.steps)
    falling = (1 - done) / recipe.decay if recipe.decay else 1.0
    return recipe.learning_rate * min(1.0, rising, falling)


def update(model: nn.Module, optimizers: list[Optimizer], rate: float) -> None:
    """Take one step with every optimizer at ``rate``, with the gradient's norm clipped to 1."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
