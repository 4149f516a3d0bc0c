"""The view of one step: every candidate's way from logit through the sampler to its chance, and the draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli.explain.report import Alternative, GeneratedToken, Report
from llmcli.generation.distribution import draw, entropy, intervals, probabilities
from llmcli.generation.filters import LogitBias, Penalty, Temperature, Vocabulary
from llmcli.generation.grammar import GrammarFilter
from llmcli.generation.sampling import Sampler, Stage
from llmcli.generation.steps import Step
from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StageReport:
    """What one filter did: how many tokens it left, and how much of the probability that reached it it cut.

    ``changed`` counts the logits of those left that it raised or lowered, ``moved`` is how much of the probability
    went to other tokens in all.
    """

    name: str
    value: float | None
    kept: int
    removed_mass: float
    changed: int
    moved: float


@dataclass(frozen=True)
class Candidate:
    """One token's way. ``logit`` and ``p`` are the model's own; ``adjusted`` is the logit after bias and penalties.

    ``p_temperature`` is the probability that this and the temperature give, ``p_final`` the one after all filters. The
    token is drawn where ``u_low <= u < u_high``; ``cut`` names the filter that removed it.
    """

    rank: int
    id: int
    text: str
    bytes: bytes
    logit: float
    adjusted: float
    p: float
    p_temperature: float
    cut: str | None
    p_final: float
    cumulative: float
    u_low: float | None
    u_high: float | None


@dataclass(frozen=True)
class Chosen:
    """The token that came out; ``surprisal`` in bits, of the model's own probability."""

    id: int
    text: str
    bytes: bytes
    u: float | None
    p_final: float
    surprisal: float


@dataclass(frozen=True)
class Replay:
    """The view's own proof: the draw repeated from the numbers shown, and how far the final p sum from 1."""

    ok: bool
    replayed_id: int
    sum_error: float


@dataclass(frozen=True)
class Column:
    """The same logits at another temperature: entropy in bits, 2^entropy, and what the same u would draw."""

    temperature: float
    entropy: float
    choices: float
    id: int
    text: str
    bytes: bytes
    probs: dict[int, float]  # final probability of the candidates shown


@dataclass(frozen=True)
class StepReport(Report):
    """Everything about one step; ``entropy`` in bits, of the model's own distribution."""

    step: int
    prompt_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    context: str  # their text
    sampler: tuple[StageReport, ...]
    seed: int
    vocabulary: int
    entropy: float
    candidates: tuple[Candidate, ...]
    chosen: Chosen
    check: Replay
    columns: tuple[Column, ...]


def step_report(
    step: Step,
    sampler: Sampler,
    tokenizer: Tokenizer,
    *,
    prompt_ids: Sequence[int],
    context_ids: Sequence[int],
    top: int,
    temperatures: Sequence[float] = (),
) -> StepReport:
    """Explain a step: its ``top`` candidates, as many of those that ``sampler`` left, and the one that it chose."""
    logits, choice = step.logits, step.choice
    probs = probabilities(logits)
    stages = sampler.stages(logits, context_ids)
    final = probabilities(stages[-1].logits) if stages else probs
    ranking = probs.sort(descending=True, stable=True).indices.tolist()
    left = set(intervals(final.cpu())[0][:top].tolist())  # a grammar may cut all that the model thinks best
    shown = [rank for rank, id in enumerate(ranking) if rank < top or id in left or rank == choice.rank]
    adjusted = _adjusted(sampler, logits, context_ids)
    ranked = [(rank, ranking[rank]) for rank in shown]
    candidates = _candidates(ranked, logits, adjusted, probs, stages, final, tokenizer)
    return StepReport(
        step=step.index,
        prompt_ids=tuple(prompt_ids),
        context_ids=tuple(context_ids),
        context=tokenizer.decode(list(context_ids)),
        sampler=_stage_reports(stages, logits, probs),
        seed=sampler.seed,
        vocabulary=len(logits),
        entropy=entropy(probs),
        candidates=candidates,
        chosen=Chosen(
            id=step.token,
            text=tokenizer.token_text(step.token),
            bytes=tokenizer.token_bytes(step.token),
            u=choice.u,
            p_final=choice.final_prob,
            surprisal=-float(logits.double().log_softmax(dim=-1)[step.token]) / math.log(2) + 0.0,  # no -0.0
        ),
        check=_check(step, final, candidates),
        columns=tuple(
            _column(step, sampler, context_ids, t, [c.id for c in candidates], tokenizer) for t in temperatures
        ),
    )


def _adjusted(sampler: Sampler, logits: Tensor, ids: Sequence[int]) -> Tensor:
    """The logits after those filters that raise and lower single ones, and no other."""
    for filter in sampler.filters:
        if isinstance(filter, LogitBias | Penalty):
            logits = filter(logits, ids)
    return logits


def _candidates(
    ranked: list[tuple[int, int]],
    logits: Tensor,
    adjusted: Tensor,
    probs: Tensor,
    stages: list[Stage],
    final: Tensor,
    tokenizer: Tokenizer,
) -> tuple[Candidate, ...]:
    warm = next((stage.value for stage in stages if stage.name == "temperature"), None)
    tempered = probabilities(adjusted if warm is None else Temperature(warm)(adjusted))
    ids, ends = intervals(final.cpu())
    ends_list = ends.tolist()
    place = {id: n for n, id in enumerate(ids.tolist())}
    rows = []
    for rank, id in ranked:
        n = place.get(id)
        rows.append(
            Candidate(
                rank=rank,
                id=id,
                text=tokenizer.token_text(id),
                bytes=tokenizer.token_bytes(id),
                logit=float(logits[id]),
                adjusted=float(adjusted[id]),
                p=float(probs[id]),
                p_temperature=float(tempered[id]),
                cut=next((stage.name for stage in stages if math.isinf(stage.logits[id])), None),
                p_final=float(final[id]),
                cumulative=1.0 if n is None else ends_list[n],
                u_low=None if n is None else ends_list[n - 1] if n else 0.0,
                u_high=None if n is None else ends_list[n],
            )
        )
    return tuple(rows)


def _stage_reports(stages: list[Stage], logits: Tensor, probs: Tensor) -> tuple[StageReport, ...]:
    reports = []
    for stage in stages:
        alive, after = torch.isfinite(stage.logits), probabilities(stage.logits)
        removed = float(probs[~alive].double().sum())
        changed = int((stage.logits[alive] != logits[alive]).sum())
        moved = float((after.double() - probs).clamp(min=0).sum())
        reports.append(StageReport(stage.name, stage.value, int(alive.sum()), removed, changed, moved))
        logits, probs = stage.logits, after
    return tuple(reports)


def _check(step: Step, final: Tensor, candidates: tuple[Candidate, ...]) -> Replay:
    """Repeat the choice from the rows themselves: whose interval holds u, or whose final p is largest."""
    u = step.choice.u
    if u is None:
        replayed = max(candidates, key=lambda c: (c.p_final, -c.id)).id
    else:
        inside = [c.id for c in candidates if c.u_low is not None and c.u_high is not None and c.u_low <= u < c.u_high]
        replayed = inside[0] if len(inside) == 1 else -1
    error = abs(float(final.double().sum()) - 1)
    # A softmax in fp32 of 260,000 numbers is up to 1e-5 off.
    return Replay(replayed == step.token and error < 1e-4, replayed, error)


def _column(
    step: Step,
    sampler: Sampler,
    context_ids: Sequence[int],
    temperature: float,
    ids: list[int],
    tokenizer: Tokenizer,
) -> Column:
    """The step as it would have gone at ``temperature``, all other filters and u as they were."""
    warmed = [replace(f, value=temperature) if isinstance(f, Temperature) else f for f in sampler.filters]
    if not any(isinstance(f, Temperature) for f in warmed):
        before = sum(isinstance(f, Vocabulary | GrammarFilter | LogitBias | Penalty) for f in warmed)
        warmed.insert(before, Temperature(temperature))
    stages = Sampler(warmed, sampler.seed).stages(step.logits, context_ids)
    final = probabilities(stages[-1].logits)
    bits = entropy(final)
    u = step.choice.u
    chosen = int(final.argmax()) if u is None or temperature == 0 else draw(final, u)
    return Column(
        temperature=temperature,
        entropy=bits,
        choices=2**bits,
        id=chosen,
        text=tokenizer.token_text(chosen),
        bytes=tokenizer.token_bytes(chosen),
        probs={id: float(final[id]) for id in ids},
    )


def generated_token_of(step: Step, tokenizer: Tokenizer, rivals: int) -> GeneratedToken:
    """What ``generate --json`` and ``--probs`` tell of a step, with its ``rivals`` most probable tokens."""
    probs = probabilities(step.logits)
    logprob = float(step.logits.log_softmax(dim=-1)[step.token])
    order = probs.sort(descending=True, stable=True).indices[:rivals].tolist()
    return GeneratedToken(
        index=step.index,
        id=step.token,
        text=tokenizer.token_text(step.token),
        bytes=tokenizer.token_bytes(step.token),
        logprob=logprob,
        prob=step.choice.prob,
        final_prob=step.choice.final_prob,
        rank=step.choice.rank,
        entropy=entropy(probs),
        u=step.choice.u,
        top=tuple(
            Alternative(id, tokenizer.token_text(id), tokenizer.token_bytes(id), float(probs[id])) for id in order
        ),
    )
