"""The sizes of the mixers that recurrent layers have in attention's place."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from llmcli.errors import LlmcliError

if TYPE_CHECKING:
    from llmcli.model.activations import Activation

MOST = 2**20


@dataclass(frozen=True)
class DeltaNetConfig:
    """Gated DeltaNet (Yang et al. 2024): ``key_heads`` of ``key_dim`` features, ``value_heads`` of ``value_dim``.

    Each key head serves value_heads / key_heads value heads. ``kernel`` is the width of the convolution before the
    heads, in positions.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.value_heads % self.key_heads:
            raise LlmcliError(
                f"config.json: the number of value heads ({self.value_heads}) must be a multiple of that of key heads "
                f"({self.key_heads})",
                "the file may be damaged, or the model unsupported",
            )

    def __str__(self) -> str:
        return (
            f"gated delta net, {self.value_heads} heads with a memory of {self.key_dim} x {self.value_dim}, "
            f"after a convolution of {self.kernel} positions"
        )

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all value heads together."""
        return self.value_heads * self.value_dim

    @property
    def convolved(self) -> int:
        """Width of what is convolved: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of a text's state: the end of the convolution's input, and the memory of every head."""
        return (self.kernel - 1, self.convolved), (self.value_heads, self.key_dim, self.value_dim)


@dataclass(frozen=True)
class ShortConvConfig:
    """Gated short convolution (Liquid AI 2025, LFM2) of ``width`` features over ``kernel`` positions."""

    width: int
    kernel: int
    bias: bool

    def __post_init__(self) -> None:
        _check_sizes(self)

    def __str__(self) -> str:
        return f"gated convolution of {self.kernel} positions"

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of a text's state: the end of the convolution's input."""
        return ((self.kernel - 1, self.width),)


@dataclass(frozen=True)
class MambaConfig:
    """Mamba-2 (Dao & Gu 2024): ``heads`` of ``head_dim`` features, each with a state of ``state_size`` per feature.

    Consecutive heads share what they write and read by in ``groups``. ``kernel`` is the width of the convolution, in
    positions; ``activation`` follows it. ``step_limits`` bound the step size. ``norm`` is where the heads' outputs are
    normalized, if they are. ``part_scales`` multiply the gate, x, B, C and the step sizes, ``out_scale`` the output.
    """

    heads: int
    head_dim: int
    state_size: int
    groups: int
    kernel: int
    kernel_bias: bool
    bias: bool
    step_limits: tuple[float, float] = (0.0, math.inf)
    activation: Activation = "silu"
    norm: Literal["after gate", "before gate"] | None = "after gate"
    part_scales: tuple[float, ...] = ()
    out_scale: float = 1.0

    def __post_init__(self) -> None:
        _check_sizes(self)
        if self.heads % self.groups:
            raise LlmcliError(
                f"config.json: the number of Mamba heads ({self.heads}) must be a multiple of that of groups "
                f"({self.groups})",
                "the file may be damaged, or the model unsupported",
            )

    def __str__(self) -> str:
        return (
            f"Mamba-2, {self.heads} heads with a state of {self.head_dim} x {self.state_size}, "
            f"after a convolution of {self.kernel} positions"
        )

    @property
    def width(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Width of what is convolved: the heads' inputs, and what they write and read by."""
        return self.width + 2 * self.groups * self.state_size

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of a text's state: the end of the convolution's input, and the state of every head."""
        return (self.kernel - 1, self.convolved), (self.heads, self.head_dim, self.state_size)


MixerConfig = DeltaNetConfig | ShortConvConfig | MambaConfig


def _check_sizes(config: MixerConfig) -> None:
    for field in fields(config):
        size = getattr(config, field.name)
        if field.type != "int":
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST:
            raise LlmcliError(
                f"config.json: the mixer's {field.name} must be a whole number from 1 to {MOST}, not {size!r}",
                "the file may be damaged, or the model unsupported",
            )
