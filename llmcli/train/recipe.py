"""The settings of a training run: the same recipe, corpus and initial model give the same model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from llmcli.errors import LlmcliError, did_you_mean, usage_error
from llmcli.files.atomic import replacing
from llmcli.files.toml import read_toml
from llmcli.model.config import ModelConfig, RopeConfig

FILE = "recipe.toml"
BOS_ID, EOS_ID = 0, 1  # the tokenizer's trainer numbers special tokens first
STAGES = "stage"  # the name of the tables in a recipe of several runs, each of which begins with the model before it

Method = Literal["pretrain", "sft", "dpo"]
Optimizer = Literal["muon", "adamw"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Shape:
    """A Llama and its vocabulary. Sizes are numbers of vector components where not said otherwise."""

    vocab_size: int = 4096  # tokens
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2

    def __post_init__(self) -> None:
        _check_whole(self)
        if self.hidden_size % self.num_attention_heads:
            raise usage_error(
                f"hidden_size ({self.hidden_size}) must be a multiple of the heads ({self.num_attention_heads})"
            )
        if self.vocab_size < 258:
            raise usage_error(
                f"vocab_size must be at least 258, not {self.vocab_size}", "256 bytes and 2 special tokens"
            )

    def model_config(self, vocab_size: int, context: int) -> ModelConfig:
        """A Llama of this shape; ``vocab_size`` is what the tokenizer came to, ``context`` its most positions."""
        return ModelConfig(
            model_type="llama",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.hidden_size // self.num_attention_heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            norm_eps=1e-5,
            rope=RopeConfig(theta=10000.0),
            bos_token_id=BOS_ID,
            eos_token_ids=(EOS_ID,),
        )


@dataclass(frozen=True)
class Recipe:
    """Sizes are in tokens where not said otherwise; ``warmup``, ``decay`` and ``plain`` are shares.

    ``method`` "pretrain" learns whole texts, "sft" (supervised fine-tuning) the replies to prompts, and "dpo" (direct
    preference optimization) which of two replies is the better. ``shape`` is None where a model is there to begin with.
    The learning rate rises linearly over ``warmup``, stays, and falls linearly to zero over ``decay``.
    """

    method: Method = "pretrain"
    shape: Shape | None = field(default_factory=Shape)
    context: int = 1024
    batch_size: int = 8  # sequences of ``context`` tokens a step; for dpo pairs of them
    tokens: int = 20_000_000  # to train on in all, repeats counted, and what dpo fills up
    optimizer: Optimizer = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    decay: float = 0.6
    plain: float = 0.0  # sft: how many of the replies are learnt as texts, without their prompts
    beta: float = 0.1  # dpo: how closely the model is held to what it was
    precision: Precision = "bfloat16"  # of the matrix products; weights stay fp32
    seed: int = 0

    def __post_init__(self) -> None:
        _check_whole(self)
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and 0 < self.beta < math.inf):
            raise usage_error("learning_rate and beta must be above 0, weight_decay at least 0, and none infinite")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise usage_error("warmup and decay are shares of the run: from 0 to 1, together at most 1")
        if not 0 <= self.plain <= 1:
            raise usage_error(f"plain is a share of the replies, from 0 to 1, not {self.plain}")
        for name, words in (("optimizer", get_args(Optimizer)), ("precision", get_args(Precision))):
            if getattr(self, name) not in words:
                raise usage_error(f"{name} is {getattr(self, name)!r}", f"it is {' or '.join(words)}")

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.context * (2 if self.method == "dpo" else 1)

    @property
    def unit(self) -> str:
        """Of the loss."""
        return "nats per pair" if self.method == "dpo" else "nats per token"

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def write(self, folder: Path) -> None:
        """As a file that ``read_recipe`` reads."""
        values = asdict(self)
        values |= values.pop("shape") or {}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        with replacing(folder / FILE) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


# The defaults of each method that differ from the recipe's own.
METHOD_DEFAULTS: dict[Method, dict[str, Any]] = {
    "pretrain": {},
    "sft": {"tokens": 2_000_000, "learning_rate": 1e-3, "decay": 0.9},
    "dpo": {"tokens": 1_000_000, "learning_rate": 1e-4, "decay": 0.9},
}


def make_recipe(given: Mapping[str, Any], *, positions: int | None) -> Recipe:
    """The recipe of these values, others being as usual; ``positions`` is the context of a model to begin with.

    Errors: unknown names, values that cannot be, a shape for a model that has one, a context beyond its own.
    """
    ours, of_shape = _names(Recipe) - {"shape"}, _names(Shape)
    for name in given:
        if name not in ours | of_shape:
            raise usage_error(f"a recipe has no {name}", did_you_mean(name, sorted(ours | of_shape)))
        if positions is not None and name in of_shape:
            raise usage_error(f"{name} is fixed by the initial model", "remove it")
    method = given.get("method", "pretrain")
    if method not in METHOD_DEFAULTS:
        raise usage_error(f"method is {method!r}", f"it is one of {', '.join(METHOD_DEFAULTS)}")
    if method != "pretrain" and positions is None:
        raise usage_error(f"{method} starts from a trained model", kind="init-needed")
    values = {**METHOD_DEFAULTS[method], **{name: given[name] for name in given if name in ours}}
    if positions is None:
        return Recipe(shape=Shape(**{name: given[name] for name in given if name in of_shape}), **values)
    recipe = Recipe(shape=None, **{"context": min(Recipe.context, positions), **values})
    if recipe.context > positions:
        raise usage_error(
            f"context must be at most the model's {positions}, not {recipe.context}", kind="context-beyond-model"
        )
    return recipe


def resumed_recipe(folder: Path) -> Recipe:
    """The recipe of the run in ``folder``; one that began with a model tells no shape."""
    path = folder / FILE
    raw = read_toml(path, "name the folder of a run", "the file may be damaged")
    (recipe,) = read_recipe(path, positions=None if raw.keys() & _names(Shape) else raw.get("context"))
    return recipe


def read_recipe(path: Path, *, positions: int | None) -> list[Recipe]:
    """The recipes of a file, one after the other; ``positions`` as of ``make_recipe``, for the first."""
    raw = read_toml(path, "name a recipe", "as in: learning_rate = 0.001")
    stages = raw.get(STAGES)
    tables = stages if isinstance(stages, list) and len(raw) == 1 else [raw]
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise usage_error(f"{path} holds no recipe", f"values, or tables of them called [[{STAGES}]]")
    recipes: list[Recipe] = []
    try:
        for table in tables:
            recipes.append(make_recipe(_typed(table), positions=positions))
            positions = recipes[0].context if positions is None else positions
        return recipes
    except LlmcliError as error:
        raise usage_error(f"{path}: {error.message}", error.hint, kind=error.kind) from error


def _typed(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table, its values of the kinds that the recipe's fields have. Errors: one that is not."""
    kinds = {f.name: f.type for f in (*fields(Shape), *fields(Recipe))}
    for name, value in table.items():
        kind = kinds.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {"int": whole, "float": whole or isinstance(value, float)}.get(str(kind), isinstance(value, str))
        if kind is not None and not fits:
            raise usage_error(f"{name} is {value!r}", "give a number" if kind in ("int", "float") else "give a word")
    return table


def _names(kind: type[Shape | Recipe]) -> set[str]:
    return {f.name for f in fields(kind)}


def _check_whole(values: Shape | Recipe) -> None:
    """Raise where a whole number is too small."""
    for one in fields(values):
        value, least = getattr(values, one.name), 0 if one.name == "seed" else 1
        if one.type == "int" and value < least:
            raise usage_error(f"{one.name} must be at least {least}, not {value}")
