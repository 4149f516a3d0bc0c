"""Activation patching: which parts of a model carry the difference between two texts.

The model reads the corrupt text, but one part's result is replaced by what it was for the clean text. How much of the
difference between the two texts' answers comes back is that part's effect (Vig et al. 2020; Meng et al. 2022, causal
tracing; Wang et al. 2022, path patching).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.attribution import ROUNDING, why
from llmcli.explain.forward_pass import check_length, tolerance
from llmcli.explain.interventions.ablation import parse_part, part_results
from llmcli.explain.interventions.beginning import Beginning
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.selection import Text, find_token, token_ids
from llmcli.generation.distribution import argmax, check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.hooks import Change, Site, changed
from llmcli.model.transformer import Transformer

MapPart = Literal["residual", "attn", "mlp"]
LEAST_DIFFERENCE = 1e-2  # between the logit differences of the two texts
MAX_ROWS = 2**12  # tokens of all texts of a pass

HEADS = "heads"
PartEffect = tuple[str, int, int | None, float]  # name, layer, head, effect

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PatchedLayer:
    """The effect of one layer's part at each position, from ``PatchReport.first`` on; None: of the embedding."""

    layer: int | None
    effects: tuple[float, ...]


@dataclass(frozen=True)
class PatchedPart:
    """A head ("L3.H2") or an MLP ("L3 MLP"): its effect at all positions together, and its direct effect.

    The direct effect is how much more the part itself adds to the logit difference at the last position in the clean
    text, the final norm held fixed in each (see ``why``), as a share of the same whole.
    """

    name: str
    layer: int
    head: int | None
    effect: float
    direct: float


@dataclass(frozen=True)
class PatchedPath:
    """The effect of one part on the answer through another part's input, and nothing else."""

    sender: str
    receiver: str
    effect: float


@dataclass(frozen=True)
class PatchReport(Report):
    """What restores the clean text's answer in the corrupt one.

    ``differences`` are the logits of ``token`` minus those of ``other`` after the clean and after the corrupt text.
    An effect is the share of their distance that a patch restores: 0 leaves the corrupt answer, 1 gives the clean one.
    ``first`` is the first position at which the texts differ; ``rows`` are about ``part``. ``direct_total`` is the sum
    of all direct effects.
    """

    model: str
    clean: tuple[VocabEntry, ...]
    corrupt: tuple[VocabEntry, ...]
    token: VocabEntry
    other: VocabEntry
    differences: tuple[float, float]
    part: MapPart
    first: int
    rows: tuple[PatchedLayer, ...]
    parts: tuple[PatchedPart, ...]
    direct_total: float
    path: PatchedPath | None
    check: Check


def patch(
    loaded: LoadedModel,
    clean: Text,
    corrupt: Text,
    *,
    token: int | str | None = None,
    other: int | str | None = None,
    part: MapPart = "residual",
    path: tuple[str, str] | None = None,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> PatchReport:
    """Patch ``part`` of each layer at each position, and each head and MLP, from the clean into the corrupt text.

    ``token`` is the answer to the clean text, by default the most probable one, and ``other`` that to the corrupt text.
    ``path`` names a sender and a receiver, such as ("3.2", "4.5"). ``progress`` receives layers done and their total.
    Raises LlmcliError if the texts differ in their number of tokens or not at all, or if both give the same answer.
    """
    model = loaded.model
    texts = [token_ids(loaded, text, parse_special=parse_special) for text in (clean, corrupt)]
    first = _first_difference(texts)
    check_length(model, len(texts[0]))
    pair = _answers(loaded, texts, token, other)
    run = _Patching(model, texts[0], texts[1], first, pair, progress)
    path_effect = None if path is None else PatchedPath(*path, run.path_effect(*path))
    rows, effects = [run.embedding_row()] if part == "residual" else [], []
    for layer in run.layers:
        of_layer, of_parts = run.layer(layer, part)
        rows += of_layer
        effects += of_parts
    direct, unexplained = _direct_effects(loaded, texts, pair, run)
    parts = tuple(
        PatchedPart(name, layer, head, effect, direct.get(name, 0.0)) for name, layer, head, effect in effects
    )
    return PatchReport(
        model=loaded.name,
        clean=tuple(vocab_entry(loaded.tokenizer, id) for id in texts[0]),
        corrupt=tuple(vocab_entry(loaded.tokenizer, id) for id in texts[1]),
        token=vocab_entry(loaded.tokenizer, pair[0]),
        other=vocab_entry(loaded.tokenizer, pair[1]),
        differences=(run.clean_difference, run.corrupt_difference),
        part=part,
        first=first,
        rows=tuple(rows),
        parts=parts,
        direct_total=sum(direct.values()),
        path=path_effect,
        check=check(
            Claim("the whole residual stream restores the clean answer", run.whole_error(), tolerance(model)),
            Claim("patching the corrupt text with itself changes nothing", run.nothing_error(), tolerance(model)),
            Claim("the direct effects of why sum to the difference", unexplained, tolerance(model)),
        ),
    )


def _first_difference(texts: Sequence[Sequence[int]]) -> int:
    clean, corrupt = texts
    if len(clean) != len(corrupt):
        raise usage_error(
            f"the texts have {len(clean)} and {len(corrupt)} tokens, but each position needs a counterpart",
            "replace words by words of as many tokens; llmcli tokenize counts them",
        )
    for position, (a, b) in enumerate(zip(clean, corrupt, strict=True)):
        if a != b:
            return position
    raise usage_error("the two texts are the same", "change the words whose effect you want to see")


def _answers(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], token: int | str | None, other: int | str | None
) -> tuple[int, int]:
    size = loaded.model.config.vocab_size
    chosen = [
        argmax(_last_logits(loaded.model, ids)) if given is None else find_token(loaded.tokenizer, given, size)
        for ids, given in zip(texts, (token, other), strict=True)
    ]
    if chosen[0] == chosen[1]:
        name = loaded.tokenizer.token_text(chosen[0])
        raise usage_error(f"the answer to both texts is {name!r}", kind="same-answer")
    return chosen[0], chosen[1]


@torch.inference_mode()
def _last_logits(model: Transformer, ids: Sequence[int]) -> Tensor:
    """The logits [V] after a text."""
    x = model.hidden(torch.tensor([ids], device=model.device), model.new_cache())
    logits = model.unembed(x[:, -1])[0]
    check_finite(logits)
    return logits


class _Patching:
    """A pair of texts, what the clean one computes, and how much of the difference a change restores."""

    def __init__(
        self,
        model: Transformer,
        clean: Sequence[int],
        corrupt: Sequence[int],
        first: int,
        pair: tuple[int, int],
        progress: Progress | None,
    ) -> None:
        self.model, self.clean, self.corrupt = model, clean, corrupt
        self.first, self.pair, self.progress = first, pair, progress
        config = model.config
        self.layers = range(config.num_hidden_layers)
        self.places = torch.eye(len(corrupt), dtype=torch.bool)[first:]
        self.done = 0
        sites = {Site("residual", -1)}
        for layer in self.layers:
            sites |= {Site("residual", layer), Site("attn", layer), Site("mlp", layer), Site("heads", layer)}
        self.values = part_results(model, clean, sites)
        self.clean_difference, self.corrupt_difference = (
            self.difference(_last_logits(model, ids)) for ids in (clean, corrupt)
        )
        self.beginning = Beginning(model, corrupt, first)
        if abs(self.clean_difference - self.corrupt_difference) < LEAST_DIFFERENCE:
            raise usage_error("both texts give the two answers the same logit difference", kind="same-answer")

    def difference(self, logits: Tensor) -> float:
        """The logit of the answer to the clean text minus that to the corrupt one; logits [V]."""
        return float(logits[self.pair[0]].double() - logits[self.pair[1]].double())

    def share(self, difference: float) -> float:
        """How much of the distance from the corrupt to the clean answer a logit difference restores."""
        return (difference - self.corrupt_difference) / (self.clean_difference - self.corrupt_difference)

    def effect(self, *changes: Change) -> float:
        """The effect of some changes of the pass over the corrupt text."""
        return self.share(self.difference(self.beginning.continued(changes, 1)[0]))

    def effects(self, *patches: tuple[Site, Tensor]) -> list[list[float]]:
        """For each site, the effect of each of its masks [n, T] or [n, T, units]: where it becomes the clean one.

        All are rows of the same passes.
        """
        total = sum(len(masks) for _, masks in patches)
        changes: list[tuple[Site, Tensor]] = []
        begin = 0
        for site, masks in patches:
            rows = masks.new_zeros(total, *masks.shape[1:])
            rows[begin : begin + len(masks)] = masks
            changes.append((site, rows[:, self.first :].to(self.model.device)))
            begin += len(masks)
        step = max(MAX_ROWS // len(self.corrupt), 1)
        found: list[float] = []
        for start in range(0, total, step):
            part = [
                Change(site, value=self.values[site], per_position=True, mask=rows[start : start + step])
                for site, rows in changes
            ]
            logits = self.beginning.continued(part, min(step, total - start))
            found += [self.share(self.difference(row)) for row in logits]
        effects = iter(found)
        return [list(islice(effects, len(masks))) for _, masks in patches]

    def embedding_row(self) -> PatchedLayer:
        """The effects of the embedding at each position from the first difference on."""
        return PatchedLayer(None, tuple(self.effects((Site("residual", -1), self.places))[0]))

    def layer(self, layer: int, part: MapPart) -> tuple[list[PatchedLayer], list[PartEffect]]:
        """The effects of ``part`` at each position, if the layer has it, and those of its parts at all positions."""
        patches = {name: patch for name, patch in self._patches(layer).items() if patch[0] in self.values}
        mapped = [(Site(part, layer), self.places)] if Site(part, layer) in self.values else []
        found = self.effects(*mapped, *patches.values())
        rows = [PatchedLayer(layer, tuple(found.pop(0)))] if mapped else []
        effects: list[PartEffect] = []
        for name, values in zip(patches, found, strict=True):
            if name == HEADS:
                effects += [(f"L{layer}.H{head}", layer, head, effect) for head, effect in enumerate(values)]
            else:
                effects.append((f"L{layer} {name}", layer, None, values[0]))
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, len(self.layers))
        return rows, effects

    def _patches(self, layer: int) -> dict[str, tuple[Site, Tensor]]:
        """What each part of a layer is called, with its site and its masks: all heads, one by one, and the others."""
        config, count = self.model.config, len(self.corrupt)
        everywhere = torch.ones(1, count, dtype=torch.bool)
        patches: dict[str, tuple[Site, Tensor]] = {}
        if config.has_attention(layer):
            units = torch.eye(config.num_attention_heads, dtype=torch.bool)  # [H, H]
            patches[HEADS] = Site("heads", layer), units[:, None].expand(-1, count, -1)  # [H, T, H]
        elif config.has_mixer(layer):
            patches["mixer"] = Site("attn", layer), everywhere
        if config.has_mlp(layer):
            patches["MLP"] = Site("mlp", layer), everywhere
        return patches

    def path_effect(self, sender: str, receiver: str) -> float:
        """The effect of the sender's clean result on the answer if only the receiver reads it."""
        source, target = (self._end_of_path(name) for name in (sender, receiver))
        self._check_path(source, target, sender, receiver)
        added = Site("mlp" if source.site.part in ("mlp", "neurons") else "attn", source.site.layer)
        plain = part_results(self.model, self.corrupt, {added, target.site})
        patched = self._clean_change(source)
        moved = part_results(changed(self.model, [patched]), self.corrupt, {added})[added] - plain[added]  # [T, C]
        inlet = Site("mlp_in" if target.site.part in ("mlp", "neurons") else "attn_in", target.site.layer)
        reading = changed(self.model, [Change(inlet, value=moved, per_position=True, adds=True)])
        received = part_results(reading, self.corrupt, {target.site})[target.site]  # [T, ...]
        value = received if target.unit is None else received[:, target.unit]
        return self.effect(Change(target.site, value=value, unit=target.unit, per_position=True))

    def _end_of_path(self, name: str) -> Change:
        """The part called ``name``. Raises LlmcliError if it is in several layers, or restricted to positions."""
        changes = parse_part(self.model, name)
        if len(changes) > 1 or changes[0].positions is not None:
            raise usage_error(f"{name!r} is not a single part at all positions", "for example 3.2, attn.3 or mlp.3")
        return changes[0]

    def _check_path(self, source: Change, target: Change, sender: str, receiver: str) -> None:
        """Raise LlmcliError unless the receiver reads what the sender adds."""
        parts = {"heads": 0, "attn": 0, "neurons": 1, "mlp": 1}
        if source.site.part not in parts or target.site.part not in parts:
            raise usage_error("a path goes from a head, attn, mlp or neuron to another", "for example 3.2 4.5")
        orders = [
            (change.site.layer, 0 if self.model.config.parallel_residual else parts[change.site.part])
            for change in (source, target)
        ]
        if orders[0] >= orders[1]:
            raise usage_error(f"{receiver} does not read what {sender} adds: it does not come later", "swap them")

    def _clean_change(self, change: Change) -> Change:
        """The change that gives a part its clean result."""
        values = self.values.get(change.site)
        if values is None:
            values = part_results(self.model, self.clean, {change.site})[change.site]
        value = values if change.unit is None else values[:, change.unit]
        return Change(change.site, value=value, unit=change.unit, per_position=True)

    def whole_error(self) -> float:
        """How far the answer is from the clean one if the residual stream of a middle layer is the clean one.

        Where later layers also read the ids, or keys of earlier layers, it is that of the last layer.
        """
        config = self.model.config
        reads_more = config.num_kv_shared_layers or config.hidden_size_per_layer_input is not None
        site = Site("residual", len(self.layers) - 1 if reads_more else len(self.layers) // 2 - 1)
        return abs(self.effect(Change(site, value=self.values[site], per_position=True)) - 1)

    def nothing_error(self) -> float:
        """How far the answer is from the corrupt one if a middle layer's parts are what they are."""
        layer = len(self.layers) // 2
        values = part_results(self.model, self.corrupt, {Site("attn", layer), Site("mlp", layer)})
        return abs(self.effect(*(Change(site, value=value, per_position=True) for site, value in values.items())))


def _direct_effects(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], pair: tuple[int, int], run: _Patching
) -> tuple[dict[str, float], float]:
    """The direct effect of each part by name, and how far their sum is from the whole difference.

    They are shares of the distance between the two logit differences, before a softcap.
    """
    clean, corrupt = (why(loaded, ids, token=pair[0], other=pair[1]) for ids in texts)
    whole = clean.total.difference - corrupt.total.difference
    added: dict[str, float] = {}
    for sign, report in ((1, clean), (-1, corrupt)):
        for part in report.parts:
            if part.name != ROUNDING:
                added[part.name] = added.get(part.name, 0.0) + sign * part.difference
    if clean.softcap is None:
        whole = run.clean_difference - run.corrupt_difference
    error = relative_error(
        abs(sum(added.values()) - whole), max(abs(run.clean_difference), abs(run.corrupt_difference))
    )
    return {name: difference / whole for name, difference in added.items()}, error
