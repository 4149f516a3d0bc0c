"""The settings of a training run. The same recipe, corpus and initial model give the same model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from llmcli.errors import LlmcliError, did_you_mean, usage_error
from llmcli.files.atomic import replace_text
from llmcli.files.toml import read_toml
from llmcli.model.config import ModelConfig, RopeConfig

FILE = "recipe.toml"
BOS_ID, EOS_ID = 0, 1  # the tokenizer's trainer numbers special tokens first
MOST_SIZE = 2**31 - 1
MOST_FLOAT = 1e30  # multiples of it are still fp32 numbers
# The largest values of other integers. Training a tokenizer takes memory for the whole vocabulary from the start.
MOST = {"vocab_size": 2**22, "batch_size": 2**16, "tokens": 2**60, "seed": 2**63 - 1}
STAGES = "stage"  # the tables of a recipe with several stages; each stage starts from the model of the one before it

Method = Literal["pretrain", "sft", "dpo"]
Optimizer = Literal["muon", "adamw"]
Precision = Literal["bfloat16", "float32"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a new Llama model. ``hidden_size`` and ``intermediate_size`` are numbers of vector components."""

    vocab_size: int = 4096  # tokens
    hidden_size: int = 384
    intermediate_size: int = 1024
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2

    def __post_init__(self) -> None:
        _check_numbers(self)
        if self.hidden_size % self.num_attention_heads:
            raise usage_error(
                f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), "
                f"not {self.hidden_size}"
            )
        if self.vocab_size < 258:
            raise usage_error(
                f"vocab_size must be at least 258, not {self.vocab_size}", "for the 256 bytes and 2 special tokens"
            )

    def model_config(self, vocab_size: int, context: int) -> ModelConfig:
        """Return the config of a Llama model of this shape.

        ``vocab_size`` is the actual size of the tokenizer, ``context`` the maximum number of positions.
        """
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
    """The settings of one training run. ``warmup``, ``decay`` and ``plain`` are fractions from 0 to 1.

    ``method`` "pretrain" trains on whole texts, "sft" (supervised fine-tuning) on the replies to prompts, and "dpo"
    (direct preference optimization) on pairs of a better and a worse reply. ``shape`` is None if the run starts from an
    existing model. The learning rate rises linearly over the fraction ``warmup`` of the run, stays constant, and falls
    linearly to zero over the last fraction ``decay``.
    """

    method: Method = "pretrain"
    shape: Shape | None = field(default_factory=Shape)
    context: int = 1024
    batch_size: int = 8  # sequences of ``context`` tokens per step; for dpo, pairs of sequences
    tokens: int = 20_000_000  # in total, including repetitions and, for dpo, padding
    optimizer: Optimizer = "muon"
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    decay: float = 0.6
    plain: float = 0.0  # sft: fraction of the replies to train on as texts, without their prompts
    beta: float = 0.1  # dpo: how strongly the model is kept close to the initial model
    precision: Precision = "bfloat16"  # of matrix products; the weights stay in float32
    seed: int = 0

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and 0 < self.beta < math.inf):
            raise usage_error("learning_rate and beta must be above 0, weight_decay at least 0, and all finite")
        if not (self.warmup >= 0 and self.decay >= 0 and self.warmup + self.decay <= 1):
            raise usage_error("warmup and decay are fractions of the run: each from 0 to 1, together at most 1")
        if not 0 <= self.plain <= 1:
            raise usage_error(f"plain must be a fraction from 0 to 1, not {self.plain}")
        for name, choices in (("optimizer", get_args(Optimizer)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise usage_error(f"{name} must be {' or '.join(choices)}, not {getattr(self, name)!r}")
        if self.shape is not None:
            try:
                self.shape.model_config(self.shape.vocab_size, self.context)
            except LlmcliError as error:
                raise usage_error(error.message.removeprefix("config.json: ")) from None

    @property
    def tokens_per_step(self) -> int:
        """Tokens per step, including padding."""
        return self.batch_size * self.context * (2 if self.method == "dpo" else 1)

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return "nats per pair" if self.method == "dpo" else "nats per token"

    @property
    def steps(self) -> int:
        """Steps of the whole run, at least 1."""
        return max(1, self.tokens // self.tokens_per_step)

    def write(self, folder: Path) -> None:
        """Write the recipe to recipe.toml in ``folder``, for ``read_recipe``."""
        values = asdict(self)
        values |= values.pop("shape") or {}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
        replace_text(folder / FILE, "".join(lines))


# The defaults of each method that differ from those of Recipe.
METHOD_DEFAULTS: dict[Method, dict[str, Any]] = {
    "pretrain": {},
    "sft": {"tokens": 2_000_000, "learning_rate": 1e-3, "decay": 0.9},
    "dpo": {"tokens": 1_000_000, "learning_rate": 1e-4, "decay": 0.9},
}


def make_recipe(given: Mapping[str, Any], *, positions: int | None) -> Recipe:
    """Return a recipe with the values ``given`` and the method's defaults for the others.

    ``positions`` is the maximum number of positions of the initial model, None for a new model. Raises LlmcliError for
    unknown names, invalid values, a shape or a longer context for an initial model, and a method that needs one.
    """
    recipe_names, shape_names = _names(Recipe) - {"shape"}, _names(Shape)
    for name in given:
        if name not in recipe_names | shape_names:
            hint = did_you_mean(name, sorted(recipe_names | shape_names))
            raise usage_error(f"a recipe has no {name}", hint or "the recipe.toml of a trained model has all keys")
        if positions is not None and name in shape_names:
            raise usage_error(f"{name} is fixed by the initial model", "remove it")
    method = given.get("method", "pretrain")
    if method not in METHOD_DEFAULTS:
        raise usage_error(f"method must be one of {', '.join(METHOD_DEFAULTS)}, not {method!r}")
    if method != "pretrain" and positions is None:
        raise usage_error(f"{method} starts from a trained model", kind="init-needed")
    values = {**METHOD_DEFAULTS[method], **{name: given[name] for name in given if name in recipe_names}}
    if positions is None:
        return Recipe(shape=Shape(**{name: given[name] for name in given if name in shape_names}), **values)
    recipe = Recipe(shape=None, **{"context": min(Recipe.context, positions), **values})
    if recipe.context > positions:
        raise usage_error(
            f"context must be at most the model's {positions}, not {recipe.context}", kind="context-beyond-model"
        )
    return recipe


def resumed_recipe(folder: Path) -> Recipe:
    """Return the recipe of the run in ``folder``, whose file has a shape only if the run started from a new model."""
    path = folder / FILE
    table = read_toml(path, "name the folder of a run", "the file may be damaged")
    (recipe,) = read_recipe(path, positions=None if table.keys() & _names(Shape) else table.get("context"))
    return recipe


def read_recipe(path: Path, *, positions: int | None) -> list[Recipe]:
    """Return the recipes of the stages in a TOML file; ``positions``, as in ``make_recipe``, is for the first one.

    Raises LlmcliError, with the path, if the file contains no valid recipe.
    """
    document = read_toml(path, "name a recipe", "example: learning_rate = 0.001")
    stages = document.get(STAGES)
    tables = stages if isinstance(stages, list) and len(document) == 1 else [document]
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise usage_error(f"{path} contains no recipe", f"write values, or a [[{STAGES}]] table for each stage")
    recipes: list[Recipe] = []
    try:
        for table in tables:
            recipes.append(make_recipe(_check_types(table), positions=positions))
            positions = recipes[0].context if positions is None else positions
        return recipes
    except LlmcliError as error:
        raise usage_error(f"{path}: {error.message}", error.hint, kind=error.kind) from error


def _check_types(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``table``. Raises LlmcliError if the type of a value is not that of its field."""
    types = {f.name: f.type for f in (*fields(Shape), *fields(Recipe))}
    for name, value in table.items():
        expected = types.get(name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        is_valid = {"int": is_int, "float": is_int or isinstance(value, float)}.get(
            str(expected), isinstance(value, str)
        )
        if expected is not None and not is_valid:
            wanted = {"int": "an integer", "float": "a number"}.get(str(expected), "a string")
            raise usage_error(f"{name} must be {wanted}, not {value!r}")
    return table


def _names(settings: type[Shape | Recipe]) -> set[str]:
    return {f.name for f in fields(settings)}


def _check_numbers(values: Shape | Recipe) -> None:
    """Raise LlmcliError if an integer is too small, or a number too large."""
    for entry in fields(values):
        value, least = getattr(values, entry.name), 0 if entry.name == "seed" else 1
        if entry.type == "int" and value < least:
            raise usage_error(f"{entry.name} must be at least {least}, not {value}")
        most = MOST.get(entry.name, MOST_SIZE)
        if entry.type == "int" and value > most:
            raise usage_error(f"{entry.name} must be at most {most}, not {str(value)[:20]}")
        if entry.type == "float" and abs(value) > MOST_FLOAT:
            raise usage_error(f"{entry.name} must be at most {MOST_FLOAT:g}, not {str(value)[:20]}")
