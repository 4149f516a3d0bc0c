"""The residual streams that lenses are fitted to: those of a batch of texts, with their graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmcli.model.hooks import Hooks, Site, hooked
from llmcli.model.transformer import Transformer


@dataclass
class _Recorder(Hooks):
    """Hooks that keep the residual stream before each layer and after the last, with its graph."""

    residual: list[Tensor] = field(default_factory=list)

    def run(self, site: Site, x: Tensor, positions: Tensor) -> Tensor:
        if site.part == "residual":
            x = x.detach().requires_grad_() if site.layer < 0 and torch.is_grad_enabled() else x
            self.residual.append(x)
        return x


def streams_of(model: Transformer, ids: Tensor) -> list[Tensor]:
    """Return the residual stream [N, T, C] of ids [N, T] before each layer and after the last.

    They have their graph if gradients are enabled.
    """
    recorder = _Recorder()
    hooked(model, recorder).hidden(ids)
    return recorder.residual
