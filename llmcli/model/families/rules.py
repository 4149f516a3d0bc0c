"""How a family describes itself: the reading of its config.json, and its tensor names as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from llmcli.model.config import ModelConfig

if TYPE_CHECKING:  # a download looks at the family, and should not wait for torch
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A stored tensor and the rows of a parameter that it fills.

    ``transposed``: stored [in, out]. ``grouped`` (a, b, c): its rows, seen as [a, b, c, ...], become
    ours as [a, c, b, ...]. ``shape`` is the stored one where that differs from rows and columns.
    """

    source: str
    rows: int
    transposed: bool = False
    grouped: tuple[int, int, int] | None = None
    shape: tuple[int, ...] = ()

    def stored_shape(self, columns: tuple[int, ...]) -> tuple[int, ...]:
        """What the stored tensor must look like, for a parameter [rows of all parts, *columns]."""
        shape = self.shape or (self.rows, *columns)
        return shape[::-1] if self.transposed else shape

    @property
    def as_stored(self) -> bool:
        """Whether the rows lie in the file as they do in the parameter."""
        return not self.transposed and self.grouped is None

    def arranged(self, stored: Tensor, columns: tuple[int, ...]) -> Tensor:
        """The stored tensor as our rows: [rows, *columns]."""
        rows = (stored.T if self.transposed else stored).reshape(self.rows, *columns)
        if self.grouped is None:
            return rows
        a, b, c = self.grouped
        return rows.reshape(a, b, c, -1).transpose(1, 2).reshape(self.rows, *columns)

    def arranged_rows(self) -> Tensor:
        """Which stored row each of ours is, [rows]; of one stored [in, out], which column."""
        import torch

        return replace(self, transposed=False).arranged(torch.arange(self.rows), ())

    def in_file(self, rows: Tensor, columns: tuple[int, ...]) -> Tensor:
        """``arranged``'s inverse."""
        if self.grouped is not None:
            a, b, c = self.grouped
            rows = rows.reshape(a, c, b, -1).transpose(1, 2)
        shape = self.stored_shape(columns)
        return rows.reshape(shape[::-1]).T if self.transposed else rows.reshape(shape)


@dataclass(frozen=True)
class Rule:
    """One parameter of ``Transformer`` and the stored tensors that fill it, stacked along its rows."""

    target: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Family:
    """Everything that is particular to one ``model_type``.

    ``renamed`` are (pattern, replacement) pairs, applied with re.sub to the stored names of old or
    differently wrapped files; ``dropped`` are patterns (re.fullmatch) of stored tensors that are
    not parameters, such as precomputed masks.
    """

    model_type: str
    parse: Callable[[Mapping[str, Any]], ModelConfig]
    rules: Callable[[ModelConfig], list[Rule]]
    renamed: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()

    def rename(self, name: str) -> str:
        """A stored name as this family's rules write it."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name
