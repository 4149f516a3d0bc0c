"""One layer's attention, head by head, as it was observed at the last position of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from llmcli.explain.forward_pass import ForwardPass, tolerance
from llmcli.explain.report import Claim, relative_error
from llmcli.model.transformer import Block, Transformer


@dataclass(frozen=True)
class Heads:
    """Each head mixes the values by its weights; its columns of the output matrix make that what it adds. All fp64.

    H heads are K groups of G that share their values (H = K G).
    """

    block: Block
    weights: Tensor  # [K, G, S], of the last position
    values: Tensor  # [K, S, D]
    matrix: Tensor  # [C, K, G, D], of the output

    @property
    def output(self) -> Tensor:
        """What all heads give together, bias included, before a post-norm: [C]."""
        out = torch.einsum("ckgd,kgd->c", self.matrix, self.weights @ self.values)
        bias = self.block.attn.out.bias
        return out if bias is None else out + bias.double()

    @property
    def lengths(self) -> Tensor:
        """|alpha v W_O| of what each head takes from each position (Kobayashi et al. 2020), [H, S]."""
        # Through W^T W, [D, D] a head: [S, C] a head would be too much of a long text.
        grams = torch.einsum("ckgd,ckge->kgde", self.matrix, self.matrix)
        squares = torch.einsum("ksd,kgde,kse->kgs", self.values, grams, self.values)
        return (self.weights * squares.clamp_min(0).sqrt()).flatten(0, 1)


def heads_of(model: Transformer, reading: ForwardPass, layer: int) -> Heads:
    """The heads of one layer."""
    block = cast(Block, model.blocks[layer])
    values = reading.trace.values[layer][0].double()
    weights = reading.trace.attention[layer][0, :, -1].double().view(len(values), -1, values.shape[1])
    matrix = block.attn.out.dense(slice(None)).double()
    return Heads(block, weights, values, matrix.view(len(matrix), *weights.shape[:2], -1))


def adds_up(model: Transformer, reading: ForwardPass, layers: Sequence[int]) -> Claim:
    """That weights and values, through the output matrix, are what attention was seen to add in ``layers``."""
    errors = []
    for layer in layers:
        heads, observed = heads_of(model, reading, layer), reading.trace.attn_out[layer][0, -1]
        with torch.inference_mode():
            added = heads.block.added(heads.output.to(model.dtype), heads.block.attn_post_norm).float()
        errors.append(relative_error(float((added - observed).abs().max()), float(observed.abs().max())))
    return Claim("weights times values are what attention added", max(errors), tolerance(model))
