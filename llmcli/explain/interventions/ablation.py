"""Ablation: what a model does without some of its parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.selection import Text, find_head, find_layers, token_ids
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import PREFILL_CHUNK
from llmcli.model.config import ModelConfig
from llmcli.model.hooks import Change, Hooks, Part, Site, changed, changes_of, hooked
from llmcli.model.mlp import MLP
from llmcli.model.transformer import Transformer

Replacement = Literal["zero", "mean", "resample"]
FORMS = "give a head (3.2), attn.3, mlp.3, layer.3, a neuron (mlp.3.120) or embedding; layers can be a range (attn.0-3)"


def ablate(
    loaded: LoadedModel, parts: Sequence[str], replacement: Replacement = "zero", reference: Text | None = None
) -> LoadedModel:
    """Return the model without ``parts``: what they add is replaced. It shares its weights with ``loaded``.

    A part is a head ("3.2"), "attn.3" (or the mixer in its place), "mlp.3", "layer.3", a neuron ("mlp.3.120") or
    "embedding". Layers can be a range, as in "attn.0-3"; negative layers and heads count from the end, as in "mlp.-1".
    A suffix restricts a part to positions: "mlp.3@4", "3.2@0-5".
    "zero" replaces a part's result by zeros, "mean" by its mean over ``reference``, without the first position, whose
    activations are unlike all others, and "resample" by its result for ``reference`` at the same position.

    Raises LlmcliError if the model has no such part, or a reference is missing or not used.
    """
    changes = [change for part in parts for change in parse_part(loaded.model, part)]
    if (reference is None) != (replacement == "zero"):
        raise usage_error("a mean and resampling need a reference text, zeros none", "give it, or omit it")
    if reference is not None:
        ids = token_ids(loaded, reference, any_length=True)
        if len(ids) < 2:
            raise usage_error("the reference text has fewer than two tokens", "give a longer one")
        changes = _replaced(loaded, changes, replacement, ids)
    model = changed(loaded.model, changes)
    return replace(loaded, name=f"{loaded.name} without {', '.join(parts)}", model=model)


def parse_part(model: Transformer, text: str) -> list[Change]:
    """The changes that remove the part called ``text``, one per layer. Raises LlmcliError if there is no such part."""
    config = model.config
    name, _, where = text.strip().partition("@")
    positions = find_positions(where, text, config.max_position_embeddings) if "@" in text else None
    if re.fullmatch(r"L?-?[0-9]+\.H?-?[0-9]+", name):
        layer, head = find_head(config, name)
        return [Change(Site("heads", layer), unit=head, positions=positions)]
    if name == "embedding":
        return [Change(Site("residual", -1), positions=positions)]
    kind, _, rest = name.partition(".")
    neuron = re.fullmatch(r"(-?[0-9]+)\.([0-9]{1,9})", rest)
    if kind == "mlp" and neuron:
        return [_neuron(model, find_layers(config, neuron[1])[0], int(neuron[2]), positions)]
    parts: dict[str, Part] = {"attn": "attn", "mlp": "mlp", "layer": "layer"}
    if kind not in parts or not rest:
        raise usage_error(f"{text!r} names no part of the model", FORMS)
    layers = [layer for layer in find_layers(config, rest) if _has(config, parts[kind], layer)]
    if not layers:
        raise usage_error(f"{text!r}: there is no such part in these layers", "llmcli inspect lists the layers")
    return [Change(Site(parts[kind], layer), positions=positions) for layer in layers]


def _has(config: ModelConfig, part: Part, layer: int) -> bool:
    if part == "mlp":
        return config.has_mlp(layer)
    return part == "layer" or config.has_attention(layer) or config.has_mixer(layer)


def _neuron(model: Transformer, layer: int, number: int, positions: frozenset[int] | None) -> Change:
    mlp = model.blocks[layer].mlp
    if not isinstance(mlp, MLP):
        raise usage_error(f"layer {layer} has no single MLP whose neurons could be chosen", f"ablate mlp.{layer}")
    count = model.config.mlp_size(layer)
    if number >= count:
        raise usage_error(f"there is no neuron {number}", f"the MLP of layer {layer} has neurons 0 to {count - 1}")
    return Change(Site("neurons", layer), unit=number, positions=positions)


def find_positions(text: str, whole: str, context: int) -> frozenset[int]:
    """Return the positions below ``context`` that ``text``, a part of ``whole``, lists, such as "3" or "0-5,8".

    Raises LlmcliError for anything else.
    """
    found: set[int] = set()
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise usage_error(f"{whole!r}: {text!r} is not a list of positions", "count from 0: @3, @0-5 or @0,3")
        last = int(match[2] or match[1])
        if last >= context:
            raise usage_error(
                f"{whole!r}: there is no position {last}", f"the context has positions 0 to {context - 1}"
            )
        found |= set(range(int(match[1]), last + 1))
    return frozenset(found)


def _replaced(
    loaded: LoadedModel, changes: Sequence[Change], replacement: Replacement, ids: Sequence[int]
) -> list[Change]:
    """The changes with the values that the parts have for the reference ``ids``."""
    ids = ids[: loaded.model.config.max_position_embeddings]
    results = part_results(loaded.model, ids, {change.site for change in changes})
    replaced = []
    for change in changes:
        values = results[change.site]  # [T, ...]
        values = values if change.unit is None else values[:, change.unit]
        if replacement == "mean":
            replaced.append(replace(change, value=values[1:].mean(dim=0)))
        else:
            replaced.append(replace(change, value=values, per_position=True))
    return replaced


@torch.inference_mode()
def part_results(model: Transformer, ids: Sequence[int], sites: set[Site]) -> dict[Site, Tensor]:
    """What the model computes at ``sites`` for each of ``ids``, fp32 [T, ...]."""
    hooks = Hooks(changes_of(model), keep=sites)
    reader, cache = hooked(model, hooks), model.new_cache()
    cache.planned = len(ids)
    for start in range(0, len(ids), PREFILL_CHUNK):
        reader.hidden(torch.tensor([ids[start : start + PREFILL_CHUNK]], device=model.device), cache)
    return {site: torch.cat([part[0] for part in parts]).float() for site, parts in hooks.kept.items()}
