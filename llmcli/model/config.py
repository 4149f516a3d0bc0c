"""What a model is: its sizes and the choices in which families differ, frozen and validated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmcli.errors import LlmcliError

RopeType = Literal["default", "linear", "llama3"]
ROPE_TYPES: tuple[RopeType, ...] = ("default", "linear", "llama3")

Activation = Literal["silu", "gelu", "gelu_tanh"]


_COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
_MOST = 2**24  # far above any real model: a damaged number should not ask for memory


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, RoFormer), with the two scalings of the Llama family.

    ``theta`` is config.json's ``rope_theta``; ``factor``, ``low_freq_factor``, ``high_freq_factor``
    and ``original_max_position_embeddings`` come from its ``rope_scaling`` (or ``rope_parameters``).
    """

    theta: float = 10000.0
    rope_type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0

    def __post_init__(self) -> None:
        if self.theta <= 0 or self.factor <= 0:
            raise _bad(f"rope_theta ({self.theta}) and factor ({self.factor}) must be above 0")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise _bad(
                f"low_freq_factor ({self.low_freq_factor}) must be above 0 and below "
                f"high_freq_factor ({self.high_freq_factor})"
            )
        if self.original_max_position_embeddings < 0:
            raise _bad(f"original_max_position_embeddings is {self.original_max_position_embeddings}")


@dataclass(frozen=True)
class ModelConfig:
    """Every size and choice of a decoder-only transformer, under Hugging Face's names where they exist.

    ``max_position_embeddings`` is the context length in tokens. ``position`` says where order comes
    from: rotated queries and keys ("rope", see ``rope``) or a learned vector per position ("learned").
    ``dtype`` is the config's ``torch_dtype``/``dtype``, or None if it does not say.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    norm: Literal["rms", "layer"]
    norm_eps: float
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    gated_mlp: bool
    activation: Activation
    position: Literal["rope", "learned"]
    rope: RopeConfig | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST:
                raise _bad(f"{name} must be a whole number from 1 to {_MOST}, not {value!r}")
        if self.norm_eps < 0:
            raise _bad(f"norm_eps must not be negative, not {self.norm_eps}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise _bad(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if (self.rope is not None) != (self.position == "rope"):
            raise _bad(f"position {self.position!r} and rope {self.rope!r} contradict each other")
        if self.rope is not None and self.head_dim % 2:
            raise _bad(f"head_dim must be even to be rotated, not {self.head_dim}")

    @property
    def q_size(self) -> int:
        """Width of all query heads together: H * D."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or all value) heads together: K * D."""
        return self.num_key_value_heads * self.head_dim


def _bad(message: str) -> LlmcliError:
    return LlmcliError(f"config.json: {message}", "the file may be damaged or of an unsupported model")
