"""What each layer adds for a token by itself: per-layer embeddings (Gemma Team 2025, Gemma 3n).

Besides the embedding that begins the residual stream, a table has P numbers for each token and layer. Mixed with a
projection of the embedding, they are the layer's input; what the layer adds depends on that and on the residual stream.
"""

from __future__ import annotations

from torch import Tensor, nn

from llmcli.model.activations import ACTIVATIONS
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Embedding, Linear, Norm


class LayerInputs(nn.Module):
    """The inputs of all layers, [B, T, L, P], from token ids [B, T] and their embeddings [B, T, C]."""

    def __init__(self, config: ModelConfig, tokens: int, size: int) -> None:
        super().__init__()
        self.shape = (config.num_hidden_layers, size)
        wide = config.num_hidden_layers * size
        self.embedding = Embedding(tokens, wide)
        self.projection = Linear(config.hidden_size, wide, bias=False)
        self.norm = Norm(config, size)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        shape = (*ids.shape, *self.shape)
        projected = self.projection(x).float() * x.shape[-1] ** -0.5
        inputs: Tensor = self.norm(projected.view(shape)) + self.embedding(ids).view(shape) * self.shape[1] ** 0.5
        mixed: Tensor = inputs * 2**-0.5
        return mixed


class LayerInput(nn.Module):
    """What a layer adds to the residual stream x [B, T, C] for its ``given`` input [B, T, P]: [B, T, C]."""

    def __init__(self, config: ModelConfig, size: int) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.activation]
        self.gate = Linear(config.hidden_size, size, bias=False)
        self.out = Linear(size, config.hidden_size, bias=False)
        self.norm = Norm(config, config.hidden_size)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        out: Tensor = self.norm(self.out(self.activate(self.gate(x)) * given))
        return out


def layer_inputs(config: ModelConfig) -> LayerInputs | None:
    """The module that computes all layers' inputs, if the model has per-layer embeddings."""
    tokens, size = config.vocab_size_per_layer_input, config.hidden_size_per_layer_input
    return None if tokens is None or size is None else LayerInputs(config, tokens, size)


def layer_input(config: ModelConfig) -> LayerInput | None:
    """The module that computes what one layer adds for its input, if the model has per-layer embeddings."""
    size = config.hidden_size_per_layer_input
    return None if size is None else LayerInput(config, size)
