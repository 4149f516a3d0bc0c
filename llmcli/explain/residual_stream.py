"""A logit as an exact sum of what each component wrote into the residual stream (direct logit attribution).

For each token the head reads the residual stream along one direction, and the stream is the sum of what the embedding,
the attention heads and the MLPs wrote. What a head wrote is in turn a sum over the positions that it attended to
(Elhage et al. 2021, A Mathematical Framework for Transformer Circuits).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.explain.attention.layer_heads import Heads, heads_of
from llmcli.explain.forward_pass import ForwardPass
from llmcli.model.layers import Norm
from llmcli.model.transformer import Block, Transformer


@dataclass(frozen=True)
class Attribution:
    """Contributions to the logits of N tokens, before a softcap, after the last position of S tokens; in fp64."""

    embedding: Tensor  # [N]
    position: Tensor  # [N], of a learned position embedding; 0 in models with rotary positions
    heads: Tensor  # [N, L, H, S], by attended position; 0 in layers without attention
    attention_bias: Tensor  # [N, L]
    mixers: Tensor  # [N, L], of layers that mix positions without attention, or beside it
    mlps: Tensor  # [N, L]
    inputs: Tensor  # [N, L], of per-layer embeddings; 0 in models without
    norm_bias: Tensor  # [N], of the final norm
    head_bias: Tensor  # [N]
    stream: Tensor  # [N], of the residual stream as observed, which all contributions must sum to
    attention: Tensor  # [N, L], of attention's or the mixer's output as observed, the sum of heads, bias and mixer

    @property
    def total(self) -> Tensor:
        """The sum of all contributions, [N]."""
        layers = self.heads.sum(dim=(-1, -2)) + self.attention_bias + self.mixers + self.mlps + self.inputs
        return self.embedding + self.position + layers.sum(dim=-1) + self.norm_bias + self.head_bias


def attribute(model: Transformer, observed: ForwardPass, tokens: Sequence[int]) -> Attribution:
    """Split the logits of ``tokens`` into contributions, with the norms frozen at the observed residual stream."""
    trace, position = observed.trace, len(observed.ids) - 1
    rows = torch.cat([head_row(model, token) for token in tokens]).double() * model.config.logit_scale  # [N, C]
    final_norm = freeze(model.norm, trace.residual[-1][0, -1])
    directions = final_norm.input_direction(rows)
    scales = _later_scales(model).to(directions.device)
    constants = head_bias(model, tokens).double() * model.config.logit_scale
    with torch.inference_mode():
        token = model.embed_tokens(torch.tensor(observed.ids[-1:], device=model.device))[0].double()
        learned = torch.zeros_like(token) if model.positions is None else model.positions.weight[position].double()

        def along(outputs: Sequence[Tensor]) -> Tensor:
            """What the layers' outputs [B, rows, C] add after the last position: [N, L]."""
            return torch.stack([directions @ out[0, -1].double() for out in outputs], dim=1) * scales[1:]

        attention = along(trace.attn_out)
        heads = directions.new_zeros(*attention.shape, model.config.num_attention_heads, position + 1)
        biases, mixers = torch.zeros_like(attention), attention.clone()
        for layer in trace.attention:
            heads[:, layer], biases[:, layer] = _attention(
                heads_of(model, observed, layer), directions * scales[layer + 1]
            )
            beside = trace.mixer_out.get(layer)
            mixers[:, layer] = 0 if beside is None else directions @ beside[0, -1].double() * scales[layer + 1]
        return Attribution(
            embedding=directions @ token * scales[0],
            position=directions @ learned * scales[0],
            heads=heads,
            attention_bias=biases,
            mixers=mixers,
            mlps=along(trace.mlp_out),
            inputs=along(trace.input_out) if trace.input_out else torch.zeros_like(attention),
            norm_bias=final_norm.bias_along(rows),
            head_bias=constants,
            stream=directions @ trace.residual[-1][0, -1].double() + final_norm.bias_along(rows) + constants,
            attention=attention,
        )


def _later_scales(model: Transformer) -> Tensor:
    """By what later layers multiply the embedding and what each layer adds, fp64 [L + 1]; 1 in most models."""
    scalars = [block.scalar for block in model.blocks if isinstance(block, Block)]
    factors = [1.0 if scalar is None else float(scalar) for scalar in scalars]
    return torch.tensor([math.prod(factors[max(layer, 0) :]) for layer in range(-1, len(factors))], dtype=torch.float64)


def _attention(heads: Heads, directions: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's contributions along ``directions`` [N, C]: of its heads [N, H, S], and of its biases [N]."""
    bias, post = heads.bias, heads.block.attn_post_norm
    directions = directions * heads.block.scale
    constant = torch.zeros(len(directions), dtype=directions.dtype, device=directions.device)
    if post is not None:
        norm = freeze(post, heads.output)
        directions, constant = norm.input_direction(directions), norm.bias_along(directions)
    along = torch.einsum("nc,ckgd->nkgd", directions, heads.matrix)
    by_position = torch.einsum("nkgd,ksd,kgs->nkgs", along, heads.values, heads.weights).flatten(1, 2)
    return by_position, constant if bias is None else directions @ bias.double() + constant


def head_row(model: Transformer, token: int) -> Tensor:
    """Return the direction along which the head reads a token's logit from the normed residual stream, fp32 [1, C]."""
    if model.head is not None:
        return model.head.dense(slice(token, token + 1))
    row: Tensor = model.embedding(torch.tensor([token], device=model.device)).detach().float()
    return row


def head_bias(model: Transformer, tokens: Sequence[int]) -> Tensor:
    """Return what the head's bias adds to the logits of N tokens, fp32 [N]; 0 without a bias."""
    bias = None if model.head is None else model.head.bias
    return torch.zeros(len(tokens), device=model.device) if bias is None else bias.detach()[list(tokens)].float()


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with the scale that it had for one vector: a linear map, under which the parts of the vector add up.

    y = gain * (x - mean(x)) + bias; RMSNorm subtracts no mean. Applying the norm to each part by itself would
    give numbers that do not sum to what the model computed.
    """

    gain: Tensor  # [C], fp64: the norm's weight divided by the size of the vector
    bias: Tensor | None  # [C], fp64
    centered: bool

    def input_direction(self, direction: Tensor) -> Tensor:
        """Return the direction [..., C] in the norm's input that maps to ``direction`` in its output."""
        scaled = direction * self.gain
        return scaled - scaled.mean(dim=-1, keepdim=True) if self.centered else scaled

    def bias_along(self, direction: Tensor) -> Tensor:
        """Return what the bias adds along ``direction`` [..., C] of the output: [...]."""
        return direction.new_zeros(direction.shape[:-1]) if self.bias is None else direction @ self.bias


def freeze(norm: Norm, x: Tensor) -> FrozenNorm:
    """Return ``norm`` as it acts on x [C]."""
    x = x.double()
    if not norm.rms:
        x = x - x.mean()
    size = (x.square().mean() + norm.eps).sqrt()
    bias = None if norm.bias is None else norm.bias.detach().double()
    return FrozenNorm((norm.weight.detach().double() + norm.offset) / size, bias, centered=not norm.rms)
