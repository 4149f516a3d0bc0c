"""Which kind of head each attention head is: what it looks at, in random repeated texts and in a given one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from llmcli.explain.attention.layer_heads import heads_of
from llmcli.explain.attention.weights import sum_claim
from llmcli.explain.forward_pass import ForwardPass, check_length, tolerance
from llmcli.explain.report import Check, Claim, Report, check, relative_error
from llmcli.explain.selection import Text, attending, token_ids
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.score import surprisals
from llmcli.model.hooks import Change, Site, changed
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer

REPEATED = 50  # random tokens, which then occur once more
SEQUENCES = 4
MAX_TEXT = 256  # tokens of a text: all attention weights are in memory

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeadScores:
    """How much of its attention a head gives to one kind of position, on average over the queries that have any.

    ``previous``: the token before (from position 2 on, where it is not the first). ``duplicate``: earlier occurrences
    of the same token. ``induction``: the tokens after those (Olsson et al. 2022). ``sink``: the first token, or the
    learned sink. ``entropy`` is that of the attention weights, in bits. None where no token occurs twice.
    """

    previous: float | None
    duplicate: float | None
    induction: float | None
    sink: float
    entropy: float


KINDS = tuple(field.name for field in fields(HeadScores))


@dataclass(frozen=True)
class ScoredHead:
    """A head's scores on the repeated random texts and, if there is one, on the user's text."""

    layer: int
    head: int
    repeated: HeadScores
    text: HeadScores | None


@dataclass(frozen=True)
class BestHead:
    """The head with the highest score of a ``kind`` on the repeated texts, and what the loss does without it.

    ``change`` is how much the loss on the second halves rises when the head is removed, ``text_change`` the same for
    the user's text, in bits per token. ``control`` is the head of the same layer with the lowest score of the kind, and
    ``control_change`` the change without that one; None if the layer has one head.
    """

    kind: str
    layer: int
    head: int
    score: float
    change: float
    text_change: float | None
    control: int | None
    control_change: float | None


@dataclass(frozen=True)
class HeadsReport(Report):
    """The scores of every head, and the best of each kind.

    The texts are ``sequences`` times ``repeated`` random tokens, each followed by itself. ``first_loss`` is the loss on
    their first halves, ``second_loss`` that on their second halves, where each token can be predicted by looking back;
    ``text_loss`` is that of the user's text, in bits per token. ``text_tokens`` is how many of its tokens were read.
    """

    model: str
    sequences: int
    repeated: int
    first_loss: float
    second_loss: float
    text_tokens: int | None
    text_loss: float | None
    heads: tuple[ScoredHead, ...]
    best: tuple[BestHead, ...]
    check: Check


def heads(
    loaded: LoadedModel,
    text: Text | None = None,
    *,
    seed: int = 0,
    parse_special: bool = False,
    progress: Progress | None = None,
) -> HeadsReport:
    """Score every head on random repeated texts, drawn with ``seed``, and on the beginning of ``text``.

    The best head of each kind is then removed, to see what the loss does without it. ``progress`` receives the number
    of models measured and their total. Raises LlmcliError if no layer has attention, or a text is empty or too short.
    """
    model = loaded.model
    shown = attending(model.config, range(model.config.num_hidden_layers))
    given = None if text is None else token_ids(loaded, text, parse_special=parse_special, any_length=True)[:MAX_TEXT]
    random = repeated_texts(loaded, seed)
    observed = [read_all(model, ids) for ids in random]
    on_random = [_scores([seen.trace.attention[layer][0] for seen in observed], random) for layer in shown]
    on_text = None
    if given is not None:
        check_length(model, len(given))
        own = read_all(model, given).trace
        on_text = [_scores([own.attention[layer][0]], [given]) for layer in shown]
    scored = tuple(
        ScoredHead(layer, head, row[head], None if on_text is None else on_text[n][head])
        for n, (layer, row) in enumerate(zip(shown, on_random, strict=True))
        for head in range(len(row))
    )
    losses = _Losses(model, random, given)
    best = _best(scored, losses, progress)
    first, second, of_text = losses.without(None)
    return HeadsReport(
        model=loaded.name,
        sequences=len(random),
        repeated=losses.half,
        first_loss=first,
        second_loss=second,
        text_tokens=None if given is None else len(given),
        text_loss=of_text,
        heads=scored,
        best=best,
        check=check(
            sum_claim(model, torch.cat([observed[0].trace.attention[layer][0] for layer in shown])),
            _loss_claim(model, observed[0], losses),
            _removal_claim(model, observed[0], best),
        ),
    )


def repeated_texts(loaded: LoadedModel, seed: int) -> list[list[int]]:
    """Return texts of random tokens that each occur twice, in the same order, after the tokenizer's own first token.

    Special tokens are not among them.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    start = [id for id in tokenizer.encode("") if id < config.vocab_size][:1]
    usual = [id for id in range(min(tokenizer.size, config.vocab_size)) if id not in tokenizer.special_ids]
    count = min(REPEATED, (config.max_position_embeddings - len(start)) // 2)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(usual), (SEQUENCES, count), generator=generator).tolist()
    return [[*start, *(2 * [usual[n] for n in row])] for row in chosen]


@torch.inference_mode()
def read_all(model: Transformer, ids: Sequence[int]) -> ForwardPass:
    """Read ``ids`` at once and record every position; ``logits`` are those after each of them, [T, V]."""
    trace = Trace()
    x = model.hidden(torch.tensor([ids], device=model.device), model.new_cache(), trace)
    for weights in trace.attention.values():
        check_finite(weights, "attention weights")
    return ForwardPass(tuple(ids), model.unembed(x[0]), trace)


def _scores(weights: Sequence[Tensor], texts: Sequence[Sequence[int]]) -> list[HeadScores]:
    """One layer's heads, from their weights [H, T, T] on each of some texts."""
    kinds = [_kinds_of(part, ids) for part, ids in zip(weights, texts, strict=True)]
    means: dict[str, Any] = {}
    for kind in KINDS:
        parts = [of[kind] for of in kinds if of[kind].shape[-1]]
        means[kind] = torch.cat(parts, dim=-1).mean(dim=-1).tolist() if parts else None
    of_heads: list[dict[str, Any]] = [
        {kind: None if values is None else values[head] for kind, values in means.items()}
        for head in range(len(weights[0]))
    ]
    return [HeadScores(**scores) for scores in of_heads]


def _kinds_of(weights: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    """For each kind, a number for each head and each query that counts, [H, queries], from weights [H, T, T]."""
    weights, tokens = weights.double(), torch.tensor(ids, device=weights.device)
    count = len(tokens)
    earlier = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril(-1)
    same = (tokens[:, None] == tokens) & earlier  # [T, T]: an earlier occurrence of the same token
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    after &= earlier
    sunk = (1 - weights.sum(dim=-1)).clamp_min(0)  # by a learned sink
    spread = torch.special.entr(weights).sum(dim=-1) + torch.special.entr(sunk)
    return {
        "previous": weights.diagonal(-1, dim1=1, dim2=2)[:, 1:],
        "duplicate": _given_to(weights, same),
        "induction": _given_to(weights, after),
        "sink": (weights[:, :, 0] + sunk)[:, 1:],
        "entropy": spread[:, 1:] / math.log(2),
    }


def _given_to(weights: Tensor, places: Tensor) -> Tensor:
    """The weight [H, queries] that each query which has any of ``places`` [T, T] gives to them."""
    queries = places.any(dim=-1)
    return (weights * places).sum(dim=-1)[:, queries]


class _Losses:
    """The losses of a model without one of its heads, in bits per token."""

    def __init__(self, model: Transformer, random: Sequence[Sequence[int]], text: Sequence[int] | None) -> None:
        self.model, self.random, self.text = model, random, text
        self.half = len(random[0]) // 2
        self._found: dict[tuple[int, int] | None, tuple[float, float, float | None]] = {}

    def without(self, head: tuple[int, int] | None) -> tuple[float, float, float | None]:
        """The losses on the first halves of the random texts, on their second halves, and on the user's text.

        The second halves count from their second token on, which is the first that looking back can predict.
        """
        if head not in self._found:
            model = self.model if head is None else without_head(self.model, *head)
            bits = torch.stack([surprisals(model, ids) for ids in self.random]) / math.log(2)  # [texts, T - 1]
            own = None
            if self.text is not None and len(self.text) > 1:
                own = float(surprisals(model, self.text).mean()) / math.log(2)
            later = self.half - 1
            self._found[head] = float(bits[:, :-later].mean()), float(bits[:, -later:].mean()), own
        return self._found[head]


def without_head(model: Transformer, layer: int, head: int) -> Transformer:
    """The model with one head's output replaced by zeros."""
    return changed(model, [Change(Site("heads", layer), unit=head)])


def _best(scored: Sequence[ScoredHead], losses: _Losses, progress: Progress | None) -> tuple[BestHead, ...]:
    found = []
    _, before, text_before = losses.without(None)
    for number, kind in enumerate(KINDS):
        best = max(scored, key=lambda each: _score(each, kind))
        others = [each for each in scored if each.layer == best.layer and each is not best]
        control = min(others, key=lambda each: _score(each, kind), default=None)
        _, after, text_after = losses.without((best.layer, best.head))
        other = None if control is None else losses.without((control.layer, control.head))[1] - before
        if progress is not None:
            progress(number + 1, len(KINDS))
        found.append(
            BestHead(
                kind=kind,
                layer=best.layer,
                head=best.head,
                score=_score(best, kind),
                change=after - before,
                text_change=None if text_after is None or text_before is None else text_after - text_before,
                control=None if control is None else control.head,
                control_change=other,
            )
        )
    return tuple(found)


def _score(head: ScoredHead, kind: str) -> float:
    value: float = getattr(head.repeated, kind)
    return value


def _loss_claim(model: Transformer, observed: ForwardPass, losses: _Losses) -> Claim:
    """Claim that the pass whose attention is shown has the loss that a pass without a trace has."""
    expected = surprisals(model, observed.ids)
    targets = torch.tensor(observed.ids[1:], device=observed.logits.device)
    found = -observed.logits[:-1].double().log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
    error = float((found.mean().cpu() - expected.double().mean()).abs())
    return Claim(
        "the observed pass has the loss of the model", relative_error(error, float(expected.mean())), tolerance(model)
    )


def _removal_claim(model: Transformer, observed: ForwardPass, best: Sequence[BestHead]) -> Claim:
    """Claim that, without a head, its layer's attention adds what its other heads add."""
    errors = []
    for layer, head in {(each.layer, each.head) for each in best}:
        added = read_all(without_head(model, layer, head), observed.ids).trace.attn_out[layer][0, -1]
        parts = heads_of(model, observed, layer)
        group, member = divmod(head, parts.weights.shape[1])
        own = parts.matrix[:, group, member] @ (parts.weights[group, member] @ parts.values[group])
        with torch.inference_mode():
            block = parts.block
            expected = block.contribution(parts.output - own, block.attn_post_norm).float()
        if layer in observed.trace.mixer_out:
            expected = expected + observed.trace.mixer_out[layer][0, -1]
        errors.append(relative_error(float((expected - added).abs().max()), float(added.abs().max())))
    return Claim("without a head, attention adds what its other heads add", max(errors), tolerance(model))
