"""What a GGUF file says about its model, before any family has read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.model.config import MAX_LAYERS
from llmcli.model.families.fields import wrong

HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"


@dataclass(frozen=True)
class Contents:
    """What a file holds: its metadata, the shapes of its tensors, and ``values``, which reads a small tensor."""

    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    values: Callable[[str], list[float]]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture. Raises LlmcliError if there is none."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise LlmcliError("the metadata has no general.architecture", "the file holds no language model")
        return name

    def find(self, key: str) -> Any:
        """A value of the architecture; None if it is missing. Numbers are the decimals that float32 stores."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return float(f"{value:.7g}") if type(value) is float else value

    def need(self, key: str) -> Any:
        """A value of the architecture, the same for all layers that have one (0: none).

        Raises LlmcliError if it is missing or differs.
        """
        value = self.find(key)
        if isinstance(value, list):
            value = [each for each in value if each] or value
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if value is None:
            raise LlmcliError(f"the metadata has no {self.architecture}.{key}", "the file may be damaged")
        if isinstance(value, list):
            raise wrong(key, "a list", "the same for all layers")
        return value

    def count(self, key: str, default: int) -> int:
        """A whole number of the architecture, at least 1. Raises LlmcliError if it is something else."""
        value = self.find(key)
        if value is None:
            return default
        if not isinstance(value, int) or value < 1:
            raise wrong(key, value, "a whole number above 0")
        return value

    def number(self, key: str) -> float:
        """A number of the architecture; 0 if it is missing. Raises LlmcliError if it is something else."""
        value = self.find(key)
        if value is not None and type(value) not in (int, float):
            raise wrong(key, value, "a number")
        return float(value or 0)

    def rows(self, name: str) -> int:
        """The number of rows of a tensor. Raises LlmcliError if it is missing, or has none."""
        shape = self.shapes.get(name, ())
        if not shape:
            raise LlmcliError(f"the file has no rows of {name}", "the file may be damaged")
        return shape[0]

    def by_layer(self, key: str) -> list[Any]:
        """A value of the architecture for each layer. Raises LlmcliError if it is missing, or not for every layer."""
        value = self.find(key)
        if not isinstance(value, list):
            return [self.need(key)] * self.layers
        if len(value) < self.layers:
            raise wrong(key, f"a list of {len(value)}", f"a list of {self.layers}")
        return value[: self.layers]

    @property
    def predicting_layers(self) -> int:
        """The number of layers after the model's own, which predict several tokens at once and are not read."""
        value = self.find("nextn_predict_layers")
        return value if isinstance(value, int) and 0 < value < self.count("block_count", 1) else 0

    @property
    def layers(self) -> int:
        """The number of the model's layers. Raises LlmcliError if it is not a whole number, or too large."""
        layers = self.count("block_count", 1) - self.predicting_layers
        if layers > MAX_LAYERS:
            raise wrong("block_count", layers, f"at most {MAX_LAYERS}")
        return layers

    @property
    def head_dim(self) -> int:
        """The size of a head. Raises LlmcliError if the numbers that it follows from are not whole."""
        return self.count("attention.key_length", self.count("embedding_length", 1) // self.count(HEADS, 1))
