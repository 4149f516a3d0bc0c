"""What changed passes over one text have in common: computed once, each of them continues from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcli.explain.interventions.ablation import part_results
from llmcli.generation.distribution import check_finite
from llmcli.generation.reading import next_logits
from llmcli.model.cache import KVCache
from llmcli.model.hooks import Change, Hooks, Site, Start, changes_of, hooked
from llmcli.model.transformer import Transformer


class Beginning:
    """A text that changes concern only from position ``first`` on: its earlier positions, and its residual stream.

    A pass with changes starts at position ``first`` and, unless later layers read the keys of earlier ones, at the
    first layer that is changed.
    """

    def __init__(self, model: Transformer, ids: Sequence[int], first: int) -> None:
        self.model, self.ids, self.first = model, ids, first
        sites = {Site("residual", layer) for layer in range(model.config.num_hidden_layers)}
        self.streams = {site.layer: x[first:] for site, x in part_results(model, ids, sites).items()}
        self.cache = model.new_cache()
        self.cache.planned = len(ids)
        if first:
            next_logits(hooked(model, Hooks(changes_of(model))), ids[:first], self.cache)

    @torch.inference_mode()
    def continued(self, changes: Sequence[Change], count: int) -> Tensor:
        """The logits [count, V] after copies of the text with ``changes``, whose masks begin at ``first``."""
        layer = min(change.site.layer for change in changes)
        start = None
        if layer > 0 and not self.model.config.num_kv_shared_layers:
            start = Start(layer, self.streams[layer - 1].expand(count, -1, -1))
        reader = hooked(self.model, Hooks((*changes_of(self.model), *changes), start=start))
        rest = torch.tensor([self.ids[self.first :]], device=self.model.device).expand(count, -1)
        logits = self.model.unembed(reader.hidden(rest, self._copies(count))[:, -1])
        check_finite(logits)
        return logits

    def _copies(self, count: int) -> KVCache:
        """A cache that holds the earlier positions ``count`` times."""
        copies, held = self.model.new_cache(count), self.cache
        copies.planned = held.planned
        if self.first:
            stored = {layer: held.held(layer) for layer in held.attending}
            keys = {layer: (_rows(k, count), _rows(v, count)) for layer, (_, k, v) in stored.items()}
            states = {layer: tuple(_rows(part, count) for part in held.state(layer) or ()) for layer in held.recurrent}
            copies.restore(held.length, held.span, keys, states)
        return copies


def _rows(part: Tensor, count: int) -> Tensor:
    """What a cache holds of one text, [1, ...], for ``count`` texts, [count, ...]."""
    return part.expand(count, *part.shape[1:])
