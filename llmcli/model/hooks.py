"""Interventions: changing what parts of a model compute in a forward pass, and keeping what they computed.

A model without hooks pays one ``is not None`` at each of these places. Shapes are ``transformer``'s; W is the width of
an MLP.

| part | what is changed or kept | shape |
|---|---|---|
| residual | the residual stream after the layer; layer -1: the embedding | [B, T, C] |
| attn_in, mlp_in | the residual stream as attention (with the mixer) or the MLP reads it, before its norm | [B, T, C] |
| heads | what each attention head computes, before the output projection | [B, T, H, D] |
| neurons | the MLP's activations, before its last matrix | [B, T, W] |
| attn, mlp | what attention (with the mixer) or the MLP adds to the residual stream | [B, T, C] |
| layer | what the whole layer adds to the residual stream | [B, T, C] |
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Part = Literal["residual", "attn_in", "mlp_in", "heads", "neurons", "attn", "mlp", "layer"]
AnyModel = TypeVar("AnyModel", bound=nn.Module)


class Site(NamedTuple):
    """Where a forward pass can be changed."""

    part: Part
    layer: int


@dataclass(frozen=True, eq=False)
class Change:
    """What one part's result is replaced by, or what is added to it.

    ``unit`` is a head or a neuron; None means all of the part. ``positions`` None means all positions; ``mask`` says
    where in a batch of texts, [B, T] or [B, T, units]. ``value`` is a number, a vector for all positions, or, if
    ``per_position``, a vector for each of the first positions of a text; later positions get them again, except for
    the first.
    """

    site: Site
    value: Tensor | float = 0.0
    unit: int | None = None
    positions: frozenset[int] | None = None
    mask: Tensor | None = None
    adds: bool = False
    per_position: bool = False

    def apply(self, x: Tensor, positions: Tensor) -> Tensor:
        """The part's result x, changed; ``positions`` are those of its T tokens, [T] or [B, T]."""
        part = x if self.unit is None else x[:, :, self.unit]
        changed = self._given(part, positions)
        if self.adds:
            changed = part + changed
        if self.positions is not None:
            chosen = torch.tensor(sorted(self.positions), device=positions.device)
            changed = torch.where(_beside(torch.isin(positions, chosen), part), changed, part)
        if self.mask is not None:
            changed = torch.where(self.mask.unsqueeze(-1), changed, part)
        if self.unit is None:
            return changed.expand_as(x)
        x = x.clone()
        x[:, :, self.unit] = changed
        return x

    def _given(self, part: Tensor, positions: Tensor) -> Tensor:
        """The new numbers, which can be broadcast to ``part``."""
        if not isinstance(self.value, Tensor):
            return part.new_tensor(self.value)
        value = self.value.to(part)
        if not self.per_position:
            return value
        last = len(value) - 1
        beyond = positions > last
        rows = torch.where(beyond, 1 + (positions - 1) % last if last else torch.zeros_like(positions), positions)
        return value[rows]


def _beside(chosen: Tensor, part: Tensor) -> Tensor:
    """``chosen`` [T] or [B, T] with trailing dimensions of size 1, as a mask of ``part`` [B, T, ...]."""
    return chosen.view(*chosen.shape, *(1,) * (part.dim() - 2))


class Start(NamedTuple):
    """A residual stream x [B, T, C] before block ``layer``, with which a pass begins instead of the embedding.

    Layers that read the keys of earlier ones need a pass through those.
    """

    layer: int
    x: Tensor


@dataclass
class Hooks:
    """The changes of a model, in the order in which they apply to one place, and which results to keep.

    ``kept`` has the results of each pass, changed, at the places of ``keep``. ``start`` skips the first blocks.
    """

    changes: Iterable[Change] = ()
    keep: Collection[Site] = ()
    start: Start | None = None
    kept: dict[Site, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._at: dict[Site, list[Change]] = {}
        for change in self.changes:
            self._at.setdefault(change.site, []).append(change)

    def begin(self, positions: Tensor) -> PassHooks:
        """The hooks of one pass over tokens at ``positions``, [T] or [B, T]."""
        return PassHooks(self, positions)

    def changes_at(self, site: Site) -> bool:
        """Whether anything changes there."""
        return site in self._at

    def run(self, site: Site, x: Tensor, positions: Tensor) -> Tensor:
        """The result x of a part, changed and, if wanted, kept."""
        for change in self._at.get(site, ()):
            x = change.apply(x, positions)
        if site in self.keep:
            self.kept.setdefault(site, []).append(x.detach().clone())
        return x


@dataclass(frozen=True)
class PassHooks:
    """The hooks of one forward pass."""

    hooks: Hooks
    positions: Tensor

    def __call__(self, part: Part, layer: int, x: Tensor) -> Tensor:
        return self.hooks.run(Site(part, layer), x, self.positions)

    def added(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """The residual stream ``after`` a layer, whose difference from the one ``before`` it may be changed."""
        site = Site("layer", layer)
        if self.hooks.changes_at(site) or site in self.hooks.keep:
            changed = self.hooks.run(site, after - before, self.positions)
            after = before + changed if self.hooks.changes_at(site) else after
        return self("residual", layer, after)


def hooked(model: AnyModel, hooks: Hooks) -> AnyModel:
    """A model with the same parameters and with ``hooks``; ``model`` itself stays as it is."""
    other = copy.copy(model)
    vars(other)["hooks"] = hooks
    return other


def changed(model: AnyModel, changes: Iterable[Change]) -> AnyModel:
    """A model with the same parameters, and with ``changes`` after those that ``model`` has."""
    return hooked(model, Hooks((*changes_of(model), *changes)))


def changes_of(model: nn.Module) -> tuple[Change, ...]:
    """The changes of a model, if it has any."""
    hooks = vars(model).get("hooks")
    return () if hooks is None else tuple(hooks.changes)
