"""How a family describes itself: its config.json and its tensor names, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmcli.model.config import ModelConfig


@dataclass(frozen=True)
class Rule:
    """One parameter of ``Transformer`` and the stored tensors that fill it, stacked along its rows.

    ``rows`` says how many rows each source fills. ``transposed`` sources are stored [in, out].
    """

    target: str
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """Everything that is particular to one ``model_type``.

    ``prefix`` may or may not stand before every stored name; ``dropped`` are patterns (re.fullmatch)
    of stored tensors that are not parameters, such as precomputed masks.
    """

    model_type: str
    parse: Callable[[Mapping[str, Any]], ModelConfig]
    describe: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[Rule]]
    prefix: str = ""
    dropped: tuple[str, ...] = ()
