"""Everything that decides a training run, frozen: the same recipe and corpus give the same model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.config import ModelConfig, RopeConfig
from llmcli.model.jsonfile import read_json
from llmcli.model.replacing import replacing
from llmcli.train.vocabulary import BOS_ID, EOS_ID

FILE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """Sizes are in tokens where not said otherwise; ``warmup`` and ``decay`` are shares of the run.

    The learning rate rises linearly over ``warmup``, stays, and falls linearly to zero over ``decay``.
    """

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    context: int = 1024
    batch_size: int = 8  # sequences of ``context`` tokens a step
    tokens: int = 20_000_000  # to train on in all, repeats counted
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    decay: float = 0.6
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of the matrix products; weights stay fp32
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "seed" else 1
            if field.type == "int" and value < least:
                raise usage_error(f"{field.name} must be at least {least}, not {value}")
        if self.hidden_size % self.num_attention_heads:
            raise usage_error(
                f"hidden_size ({self.hidden_size}) must be a multiple of the heads ({self.num_attention_heads})"
            )
        if self.vocab_size < 258:
            raise usage_error(
                f"vocab_size must be at least 258, not {self.vocab_size}", "256 bytes and 2 special tokens"
            )
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise usage_error("learning_rate must be above 0 and weight_decay at least 0")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise usage_error("warmup and decay are shares of the run: from 0 to 1, together at most 1")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def model_config(self, vocab_size: int) -> ModelConfig:
        """A Llama of the recipe's shape; ``vocab_size`` is what the tokenizer came to."""
        return ModelConfig(
            model_type="llama",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            rope=RopeConfig(theta=10000.0),
            bos_token_id=BOS_ID,
            eos_token_ids=(EOS_ID,),
        )

    def write(self, folder: Path) -> None:
        with replacing(folder / FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run that was begun in ``folder``."""
    raw = read_json(folder / FILE)
    unknown = raw.keys() - {field.name for field in fields(Recipe)}
    if unknown:
        raise LlmcliError(f"{folder / FILE}: unknown entries: {', '.join(sorted(unknown))}")
    return Recipe(**raw)
