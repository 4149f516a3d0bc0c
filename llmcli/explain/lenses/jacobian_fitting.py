"""Computing the Jacobian lens of a model on texts.

The Jacobian lens (Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models") is not
trained. It maps x to J x, with J the derivative of the final residual stream with respect to the one after the layer,
averaged over texts. The estimator is the one that the authors' code documents (anthropics/jacobian-lens, fitting.py):
derivatives are summed over the current and all later positions of the final stream, then averaged over the positions of
the source. The first 16 positions are not counted, because early positions are attention sinks.

Shapes: N windows, T positions, C hidden size, L layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.explain.lenses.fitted_lens import FitProgress, FittedLens, require_finite
from llmcli.explain.lenses.residual_streams import streams_of
from llmcli.model.transformer import Transformer

FIRST = 16  # positions that the average omits
BATCH = 4  # windows per backward pass


def fit_jacobian(model: Transformer, windows: Tensor, progress: FitProgress) -> FittedLens:
    """Return the Jacobian lens, exact for ids ``windows`` [N, T]: a backward pass for each feature of the final stream.

    Raises LlmcliError if a derivative is not finite.
    """
    config = model.config
    C, T = config.hidden_size, windows.shape[1]
    first = min(FIRST, T // 2)
    sums = torch.zeros(config.num_hidden_layers, C, C, device=model.device)
    batches = torch.split(windows, BATCH)
    for number, ids in enumerate(batches):
        with torch.enable_grad():
            *sources, final = streams_of(model, ids)
        for feature in range(C):
            wanted = torch.zeros_like(final)
            wanted[:, first:, feature] = 1
            keep = feature < C - 1
            gradients = torch.autograd.grad(final, sources, wanted, retain_graph=keep, materialize_grads=True)
            for layer, gradient in enumerate(gradients):
                sums[layer, feature] += gradient[:, first:].mean(1).sum(0)
            progress(number * C + feature + 1, len(batches) * C)
    return require_finite(FittedLens("jacobian", sums / len(windows), torch.zeros_like(sums[:, 0])))
