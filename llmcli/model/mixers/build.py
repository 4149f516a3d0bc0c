"""The choice of a mixer by its config."""

from __future__ import annotations

from llmcli.model.config import ModelConfig
from llmcli.model.mixers.config import DeltaNetConfig, MambaConfig, MixerConfig
from llmcli.model.mixers.delta_net import GatedDeltaNet
from llmcli.model.mixers.mamba import Mamba2
from llmcli.model.mixers.short_conv import ShortConv

Mixer = GatedDeltaNet | Mamba2 | ShortConv


def build_mixer(config: ModelConfig, sizes: MixerConfig, layer: int) -> Mixer:
    """The mixer of a recurrent ``layer``."""
    if isinstance(sizes, DeltaNetConfig):
        return GatedDeltaNet(config, sizes, layer)
    if isinstance(sizes, MambaConfig):
        return Mamba2(config, sizes, layer)
    return ShortConv(config, sizes, layer)
