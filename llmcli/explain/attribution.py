"""A logit split into what each part of the model wrote into the residual stream, exactly (direct logit attribution).

The head reads the residual stream along one direction for each token, and the stream is the sum of what
embedding, attention heads and MLPs wrote. A head's writing is in turn a sum over the positions that it
looked at (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.frozen import freeze
from llmcli.explain.heads import Heads, heads_of
from llmcli.explain.reading import Reading
from llmcli.model.transformer import Transformer


@dataclass(frozen=True)
class Attribution:
    """Contributions to the logits of N tokens before a softcap, in fp64, at the last position of a text of S."""

    embedding: Tensor  # [N]
    position: Tensor  # [N], a learned position's; 0 where positions are turned
    heads: Tensor  # [N, L, H, S], by the position looked at
    attention_bias: Tensor  # [N, L]
    mlps: Tensor  # [N, L]
    norm_bias: Tensor  # [N], of the final norm
    stream: Tensor  # [N], the logits of the whole stream, observed: all parts must sum to them
    attention: Tensor  # [N, L], what attention added as a whole, observed: heads and bias must sum to it

    @property
    def total(self) -> Tensor:
        """The sum of all parts, [N]."""
        layers = self.heads.sum(dim=(-1, -2)) + self.attention_bias + self.mlps
        return self.embedding + self.position + layers.sum(dim=-1) + self.norm_bias


def attribute(model: Transformer, reading: Reading, tokens: Sequence[int]) -> Attribution:
    """Split the logits of ``tokens`` that a reading gave."""
    trace, place = reading.trace, len(reading.ids) - 1
    rows = torch.cat([head_row(model, token) for token in tokens]).double() * model.config.logit_scale  # [N, C]
    last = freeze(model.norm, trace.residual[-1][0, -1])
    directions = last.back(rows)
    with torch.inference_mode():
        token = model.embed_tokens(torch.tensor(reading.ids[-1:], device=model.device))[0].double()
        learned = torch.zeros_like(token) if model.positions is None else model.positions.weight[place].double()
        layers = [_attention(heads_of(model, reading, n), directions) for n in range(model.config.num_hidden_layers)]
        heads, biases = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
        return Attribution(
            embedding=directions @ token,
            position=directions @ learned,
            heads=heads,
            attention_bias=biases,
            mlps=torch.stack([directions @ out[0, -1].double() for out in trace.mlp_out], dim=1),
            norm_bias=last.constant(rows),
            stream=directions @ trace.residual[-1][0, -1].double() + last.constant(rows),
            attention=torch.stack([directions @ out[0, -1].double() for out in trace.attn_out], dim=1),
        )


def _attention(heads: Heads, directions: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's contributions: of its heads, [N, H, S], and of its biases, [N]."""
    bias, post = heads.block.attn.out.bias, heads.block.attn_post_norm
    here = directions * heads.block.scale
    constant = torch.zeros(len(here), dtype=here.dtype, device=here.device)
    if post is not None:
        norm = freeze(post, heads.output)
        here, constant = norm.back(here), norm.constant(here)
    pulled = torch.einsum("nc,ckgd->nkgd", here, heads.matrix)
    by_source = torch.einsum("nkgd,ksd,kgs->nkgs", pulled, heads.values, heads.weights).flatten(1, 2)
    return by_source, constant if bias is None else here @ bias.double() + constant


def head_row(model: Transformer, token: int) -> Tensor:
    """The direction in the normed residual stream that the head reads for a token, fp32 [1, C]."""
    if model.head is not None:
        return model.head.dense(slice(token, token + 1))
    row: Tensor = model.embedding(torch.tensor([token], device=model.device)).detach().float()
    return row
