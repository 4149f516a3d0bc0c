"""Steering: a direction of the residual stream that tells two sets of texts apart, found and added.

The direction is the difference of the two means (Rimsky et al. 2024, contrastive activation addition), or the first
principal component of the differences between pairs (Zou et al. 2023, representation engineering).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import check_length, observe, tolerance
from llmcli.explain.interventions.ablation import part_results
from llmcli.explain.report import NOT_IN_JSON, Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.selection import Layers, Text, find_layers, token_ids
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.hooks import Change, Site, changed
from llmcli.model.transformer import Transformer
from llmcli.storage.directions import Directions

Method = Literal["mean", "pca"]
MAX_ADDED = 1e18  # norms square the residual stream, in float32
TOP = 4  # tokens that a direction promotes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SteerLayer:
    """The direction of one layer's residual stream.

    ``length`` is the direction's norm, ``residual`` the mean norm of the stream at the texts' last positions.
    ``accuracy`` is the share of texts on the right side, if the direction and its middle come from the other texts,
    and ``separation`` the distance of the two sets along it, in standard deviations. ``towards`` and ``away`` are the
    tokens that the direction itself raises and lowers most, as the head reads it.
    """

    layer: int
    length: float
    residual: float
    accuracy: float
    separation: float
    towards: tuple[VocabEntry, ...]
    away: tuple[VocabEntry, ...]


@dataclass(frozen=True)
class SteerReport(Report):
    """The directions from ``counts[1]`` negative to ``counts[0]`` positive texts; ``chosen`` are the layers saved."""

    model: str
    method: Method
    counts: tuple[int, int]
    layers: tuple[SteerLayer, ...]
    chosen: tuple[int, ...]
    check: Check
    directions: Directions = field(metadata=NOT_IN_JSON)


def steer(
    loaded: LoadedModel,
    positive: Sequence[Text],
    negative: Sequence[Text],
    *,
    method: Method = "mean",
    layers: Layers | None = None,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> SteerReport:
    """Find the direction from ``negative`` to ``positive`` texts after each layer, at their last positions.

    ``layers`` None chooses the layer with the highest accuracy, then separation; the first layer is not among them,
    because llama.cpp has no direction for it. With "pca", text n of one set is paired with text n of the other.
    Raises LlmcliError if a set has fewer than two texts, or the method needs as many of both.
    """
    model = loaded.model
    if min(len(positive), len(negative)) < 2:
        raise usage_error("two sets of at least two texts are required", "write one text in each line")
    if method == "pca" and len(positive) != len(negative):
        raise usage_error("pca compares pairs of texts, so both sets need as many", "use the mean, or add texts")
    chosen = None if layers is None else find_layers(model.config, layers)
    texts = [token_ids(loaded, text, parse_special=parse_special) for text in (*positive, *negative)]
    states = _last_states(model, texts, progress)  # [texts, L, C]
    sets = states[: len(positive)], states[len(positive) :]
    found = _direction(*sets, method)  # [L, C]
    if not found.any():
        raise usage_error("nothing tells the two sets of texts apart", "both may be the same")
    described = tuple(_describe(loaded, layer, sets, found[layer], method) for layer in range(len(found)))
    if chosen is None:
        chosen = [max(described[1:] or described, key=lambda row: (row.accuracy, row.separation)).layer]
    directions = Directions({layer: found[layer].float() for layer in chosen}, model.config.model_type)
    return SteerReport(
        model=loaded.name,
        method=method,
        counts=(len(positive), len(negative)),
        layers=described,
        chosen=tuple(chosen),
        check=check(_states_claim(model, texts, states), _added_claim(loaded, texts[0], states[0], directions)),
        directions=directions,
    )


def steered(
    loaded: LoadedModel, directions: Directions, strength: float = 1.0, layers: Layers | None = None, name: str = ""
) -> LoadedModel:
    """Return the model that adds ``strength`` times the directions; it shares its weights with ``loaded``.

    ``layers`` restricts them; None means all. ``name`` is that of the file. Raises LlmcliError if they do not fit the
    model, or there is no direction for a layer.
    """
    config = loaded.model.config
    chosen = sorted(directions.vectors) if layers is None else find_layers(config, layers)
    without = [layer for layer in chosen if layer not in directions.vectors]
    if without:
        present = ", ".join(map(str, directions.vectors))
        raise usage_error(f"there is no direction for layer {without[0]}", f"the file has them for layers: {present}")
    size = len(next(iter(directions.vectors.values())))
    if size != config.hidden_size or max(chosen) >= config.num_hidden_layers:
        raise usage_error(
            f"the direction has {size} features, for layer {max(chosen)}; the model has {config.hidden_size} features "
            f"and {config.num_hidden_layers} layers",
            "make a direction for this model with llmcli steer",
        )
    added = {layer: strength * directions.vectors[layer] for layer in chosen}
    if not all(float(vector.abs().max()) < MAX_ADDED for vector in added.values()):
        raise usage_error(f"a strength of {strength:g} is too large", "1 adds the direction as it is")
    changes = [Change(Site("residual", layer), vector, adds=True) for layer, vector in added.items()]
    model = changed(loaded.model, changes)
    return replace(loaded, name=f"{loaded.name} steered by {strength:g} x {name or 'a direction'}", model=model)


def _last_states(model: Transformer, texts: Sequence[Sequence[int]], progress: Progress | None) -> Tensor:
    """The residual stream after each layer at each text's last position, fp64 [texts, L, C]."""
    states = []
    for number, ids in enumerate(texts):
        check_length(model, len(ids))
        trace = observe(model, ids).trace
        states.append(torch.stack([x[0, -1].double().cpu() for x in trace.residual[1:]]))
        if progress is not None:
            progress(number + 1, len(texts))
    found = torch.stack(states)
    check_finite(found, "residual stream")
    return found


def _direction(positive: Tensor, negative: Tensor, method: Method) -> Tensor:
    """The direction after each layer, [L, C], from the states of two sets, [texts, L, C]."""
    mean = positive.mean(dim=0) - negative.mean(dim=0)
    if method == "mean":
        return mean
    differences = (positive - negative).transpose(0, 1)  # [L, pairs, C]
    component = torch.linalg.svd(differences, full_matrices=False).Vh[:, 0]  # [L, C], of unit length
    directed: Tensor = component * (component * mean).sum(dim=-1, keepdim=True)
    return directed  # as long as the means differ along it, and in their direction


def _describe(
    loaded: LoadedModel, layer: int, sets: tuple[Tensor, Tensor], direction: Tensor, method: Method
) -> SteerLayer:
    model, states = loaded.model, [part[:, layer] for part in sets]
    projections = _left_out(states[0], states[1], method)
    right = int((projections[0] > 0).sum()) + int((projections[1] < 0).sum())
    spread = torch.cat([part - part.mean() for part in projections]).square().mean().sqrt()
    raised, lowered = _tokens(model, direction)
    return SteerLayer(
        layer=layer,
        length=float(direction.norm()),
        residual=float(torch.cat(states).norm(dim=-1).mean()),
        accuracy=right / sum(map(len, states)),
        separation=float((projections[0].mean() - projections[1].mean()) / spread.clamp_min(1e-12)),
        towards=tuple(vocab_entry(loaded.tokenizer, id) for id in raised),
        away=tuple(vocab_entry(loaded.tokenizer, id) for id in lowered),
    )


def _left_out(positive: Tensor, negative: Tensor, method: Method) -> tuple[Tensor, Tensor]:
    """How far each text is from the middle, along the unit direction from the other texts: [texts] of each set.

    Of sets of the same size, text n of one and text n of the other are left out together: they may be a pair.
    """
    paired = len(positive) == len(negative)
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for number, states in enumerate((positive, negative)):
        for index in range(len(states)):
            rest = [
                part[torch.arange(len(part)) != index] if part is states or paired else part
                for part in (positive, negative)
            ]
            direction = _direction(rest[0].unsqueeze(1), rest[1].unsqueeze(1), method)[0]
            middle = (rest[0].mean(dim=0) + rest[1].mean(dim=0)) / 2
            found[number].append((states[index] - middle) @ direction / direction.norm().clamp_min(1e-12))
    return torch.stack(found[0]), torch.stack(found[1])


@torch.inference_mode()
def _tokens(model: Transformer, direction: Tensor) -> tuple[list[int], list[int]]:
    """The tokens whose logits the direction [C] raises and lowers most, with the final norm's weight as its scale."""
    row = (direction.float().to(model.device) * model.norm.scale()).view(1, -1)
    head = model.embedding if model.head is None else model.head
    logits = head.unembed(row)[0]
    return logits.topk(TOP).indices.tolist(), (-logits).topk(TOP).indices.tolist()


def _states_claim(model: Transformer, texts: Sequence[Sequence[int]], states: Tensor) -> Claim:
    """Claim that the last text has the states that an unobserved pass has."""
    sites = {Site("residual", layer) for layer in range(states.shape[1])}
    results = part_results(model, texts[-1], sites)
    again = torch.stack([results[Site("residual", layer)][-1] for layer in range(states.shape[1])]).double().cpu()
    error = relative_error(float((again - states[-1]).abs().max()), float(states[-1].abs().max()))
    return Claim("an unobserved pass has the same states", error, tolerance(model, model.new_cache().dtype))


def _added_claim(loaded: LoadedModel, ids: Sequence[int], states: Tensor, directions: Directions) -> Claim:
    """Claim that the steered model's first changed layer has the text's state plus the direction."""
    layer = min(directions.vectors)
    site = Site("residual", layer)
    model = steered(loaded, directions).model
    added = part_results(model, ids, {site})[site][-1].double().cpu() - states[layer]
    error = float((added - directions.vectors[layer].double()).abs().max())
    relative = relative_error(error, float(states[layer].abs().max()))
    return Claim("steering adds the direction", relative, tolerance(loaded.model, loaded.model.new_cache().dtype))
