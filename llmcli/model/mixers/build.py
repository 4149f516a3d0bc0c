"""The choice of a mixer by its config."""

from __future__ import annotations

from llmcli.model.config import ModelConfig
from llmcli.model.mixers.config import DeltaNetConfig, MixerConfig
from llmcli.model.mixers.delta_net import GatedDeltaNet
from llmcli.model.mixers.short_conv import ShortConv

Mixer = GatedDeltaNet | ShortConv


def build_mixer(config: ModelConfig, sizes: MixerConfig, layer: int) -> Mixer:
    """The mixer of a recurrent ``layer``."""
    if isinstance(sizes, DeltaNetConfig):
        return GatedDeltaNet(config, sizes, layer)
    return ShortConv(config, sizes, layer)
