"""The attention heads of one layer, as observed at the last position of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from llmcli.explain.forward_pass import ForwardPass, tolerance
from llmcli.explain.report import Claim, relative_error
from llmcli.model.attention import Attention
from llmcli.model.latent_attention import LatentAttention
from llmcli.model.transformer import Block, Transformer


@dataclass(frozen=True)
class Heads:
    """One layer's heads: each mixes the values by its weights, and the output matrix maps that to the residual stream.

    All tensors are fp64. The H heads are K groups of G that share their values (grouped-query attention, H = K G).
    """

    block: Block
    attention: Attention | LatentAttention
    weights: Tensor  # [K, G, S], of the last position
    values: Tensor  # [K, S, D]
    matrix: Tensor  # [C, K, G, D], the output projection, times its scale, and the gates of the last position

    @property
    def output(self) -> Tensor:
        """The layer's attention output [C]: the sum over all heads plus the bias, before a post-norm."""
        out = torch.einsum("ckgd,kgd->c", self.matrix, self.weights @ self.values)
        return out if self.bias is None else out + self.bias

    @property
    def bias(self) -> Tensor | None:
        """What the output projection adds to the heads [C], if anything."""
        bias = self.attention.out.bias
        return None if bias is None else bias.double() * self.attention.out_scale

    @property
    def value_sizes(self) -> Tensor:
        """The norm of each position's value as a head would add it to the residual stream, |v W_O|, [H, S]."""
        # Through W^T W, [D, D] per head: [S, C] per head would take too much memory for a long text.
        grams = torch.einsum("ckgd,ckge->kgde", self.matrix, self.matrix)
        squares = torch.einsum("ksd,kgde,kse->kgs", self.values, grams, self.values)
        return squares.clamp_min(0).sqrt().flatten(0, 1)

    @property
    def value_norms(self) -> Tensor:
        """The norm of what each head copies from each position, |alpha v W_O|, [H, S] (Kobayashi et al. 2020)."""
        return self.weights.flatten(0, 1) * self.value_sizes


def heads_of(model: Transformer, observed: ForwardPass, layer: int) -> Heads:
    """Return the heads of one layer, which has attention."""
    block = cast(Block, model.blocks[layer])
    assert block.attn is not None
    values = observed.trace.values[layer][0].double()
    weights = observed.trace.attention[layer][0, :, -1].double().view(len(values), -1, values.shape[1])
    matrix = block.attn.out.dense(slice(None)).double() * block.attn.out_scale
    matrix = matrix.view(len(matrix), *weights.shape[:2], -1)
    if layer in observed.trace.gates:
        matrix = matrix * observed.trace.gates[layer][0, :, -1].double().view(matrix.shape[1:])
    return Heads(block, block.attn, weights, values, matrix)


def attention_output_claim(model: Transformer, observed: ForwardPass, layers: Sequence[int]) -> Claim:
    """Claim that the observed weights and values give what attention added to the residual stream in ``layers``."""
    errors = []
    for layer in layers:
        heads, added = heads_of(model, observed, layer), observed.trace.attn_out[layer][0, -1]
        if layer in observed.trace.mixer_out:
            added = added - observed.trace.mixer_out[layer][0, -1]
        with torch.inference_mode():
            expected = heads.block.contribution(heads.output, heads.block.attn_post_norm).float()
        errors.append(relative_error(float((expected - added).abs().max()), float(added.abs().max())))
    return Claim("weights times values equal what attention added", max(errors), tolerance(model))
