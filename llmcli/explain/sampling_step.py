"""One sampling step: how each candidate's logit became its probability in the draw, and which token was drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli.explain.report import Alternative, GeneratedToken, Report
from llmcli.explain.selection import Text, check_whole, token_ids
from llmcli.generation.distribution import Softmax, intervals, leading, pick, probabilities, ranked
from llmcli.generation.filters import Filter, LogitBias, NumberFilter, Penalty, Temperature, Vocabulary, settings_of
from llmcli.generation.generate import sampler_of
from llmcli.generation.grammar import GrammarFilter
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler, Stage
from llmcli.generation.steps import Step, step_at
from llmcli.model.device import one_thread
from llmcli.text.tokenizer import Tokenizer

SUM_TOLERANCE = 1e-4  # an fp32 softmax over 260,000 numbers is off by up to 1e-5


@dataclass(frozen=True)
class StageReport:
    """What one filter did: how many tokens it kept, and the probability of those it removed, before it ran.

    ``changed`` counts the kept tokens whose logit it changed, ``moved`` is the probability that it moved from some
    tokens to others, by changes and removals together. ``settings`` are the filter's other numbers by option name, and
    ``state`` what it computed: the dynamic temperature, XTC's own u, Mirostat's mu in bits, the length of the longest
    repetition that DRY found.
    """

    name: str
    value: float | None
    kept: int
    removed_mass: float
    changed: int
    moved: float
    settings: Mapping[str, float]
    state: Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """One token. ``logit`` and ``p`` are the model's own; ``adjusted`` is the logit after bias and penalties.

    ``p_temperature`` is the probability after the temperature, ``p_final`` the one after all filters. The token is
    drawn if ``u_low <= u < u_high``; ``cut`` is the name of the filter that removed it, if one did.
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
    """The token that was chosen; ``surprisal`` in bits, of the model's own probability."""

    id: int
    text: str
    bytes: bytes
    u: float | None
    p_final: float
    surprisal: float


@dataclass(frozen=True)
class Replay:
    """The view's check: the draw repeated from the numbers shown, and the error of the final probabilities' sum."""

    ok: bool
    replayed_id: int
    sum_error: float


@dataclass(frozen=True)
class TemperatureColumn:
    """The step at one temperature: entropy in bits, ``choices`` = 2 ** entropy, and the token drawn by u.

    All of them are after all filters. ``used`` marks the temperature that the step itself used.
    """

    temperature: float
    used: bool
    entropy: float
    choices: float
    id: int
    text: str
    bytes: bytes
    probs: dict[int, float]  # final probability of each candidate shown, by id
    alone: dict[int, float]  # the probabilities with this temperature and no other filter; at 1 the model's own
    choices_alone: float  # 2 ** entropy of those


@dataclass(frozen=True)
class StepReport(Report):
    """Everything about one step; ``entropy`` in bits, of the model's own distribution over ``vocabulary`` tokens."""

    step: int
    prompt_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    context: str  # the text of ``context_ids``
    sampler: tuple[StageReport, ...]
    seed: int
    vocabulary: int
    entropy: float
    candidates: tuple[Candidate, ...]
    chosen: Chosen
    check: Replay
    columns: tuple[TemperatureColumn, ...]


def step(
    loaded: LoadedModel,
    text: Text,
    *,
    index: int = 0,
    sampler: Sampler | None = None,
    top: int = 10,
    temperatures: Sequence[float] = (),
    rolls: bool = False,
    parse_special: bool = False,
) -> StepReport:
    """Generate up to token ``index`` after ``text`` and report how that token was chosen.

    Runs the same loop as generation, so it explains exactly the token that a run with the same ``sampler`` writes; None
    is ``default_sampler``. ``top``, ``temperatures``: as in ``step_report``; ``rolls``: as in ``generation.steps``.
    Raises LlmcliError if the text ends before step ``index``, or the prompt is empty or fills the context.
    """
    check_whole("index", index, 0)
    ids = token_ids(loaded, text, parse_special=parse_special)
    sampler = default_sampler(loaded) if sampler is None else sampler
    found, context = step_at(loaded.model, ids, index, sampler=sampler, stop_ids=loaded.stop_ids, rolls=rolls)
    return step_report(
        found, sampler, loaded.tokenizer, prompt_ids=ids, context_ids=context, top=top, temperatures=temperatures
    )


def default_sampler(loaded: LoadedModel, seed: int = 0) -> Sampler:
    """Return a sampler with the filters that the model's generation_config.json sets."""
    return sampler_of(loaded, seed)


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
    """Report on a step that ``sampler`` chose after ``context_ids``.

    The candidates are the model's ``top`` tokens, the ``top`` tokens after all filters, and the chosen one.
    ``temperatures`` adds a column for each, and for the one that the step used, with all other filters and u unchanged.
    """
    check_whole("top", top, 0)
    logits, choice = step.logits, step.choice
    sampler = sampler.as_of(choice)
    probs = probabilities(logits)
    stages = sampler.stages(logits, context_ids)
    final = probabilities(stages[-1].logits) if stages else probs
    ranking = ranked(logits).tolist()
    kept = set(intervals(final.cpu())[0][:top].tolist())  # a grammar may remove all of the model's top tokens
    shown = [rank for rank, id in enumerate(ranking) if rank < top or id in kept or rank == choice.rank]
    adjusted = _adjusted(sampler, logits, context_ids)
    ranks = [(rank, ranking[rank]) for rank in shown]
    reports = _stage_reports(sampler.filters, stages, logits, context_ids)
    tempered = probabilities(_tempered(adjusted, reports))
    candidates = _candidates(ranks, logits, adjusted, (probs, tempered, final), stages, tokenizer)
    return StepReport(
        step=step.index,
        prompt_ids=tuple(prompt_ids),
        context_ids=tuple(context_ids),
        context=tokenizer.decode(list(context_ids)),
        sampler=reports,
        seed=sampler.seed,
        vocabulary=len(logits),
        entropy=choice.softmax.entropy(),
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
            _column(step, sampler, context_ids, t, [c.id for c in candidates], tokenizer)
            for t in _with_own(temperatures, sampler)
        ),
    )


def generated_token_of(step: Step, tokenizer: Tokenizer, alternatives: int) -> GeneratedToken:
    """Return a step as a generated token with its ``alternatives`` most probable tokens, as generation reports it."""
    softmax = step.choice.softmax
    with one_thread():
        top = leading(step.logits, alternatives).tolist()
    return GeneratedToken(
        index=step.index,
        id=step.token,
        text=tokenizer.token_text(step.token),
        bytes=tokenizer.token_bytes(step.token),
        logprob=softmax.logprob(step.token),
        prob=step.choice.prob,
        final_prob=step.choice.final_prob,
        rank=step.choice.rank,
        entropy=softmax.entropy(),
        u=step.choice.u,
        top=tuple(Alternative(id, tokenizer.token_text(id), tokenizer.token_bytes(id), softmax.prob(id)) for id in top),
    )


def _adjusted(sampler: Sampler, logits: Tensor, ids: Sequence[int]) -> Tensor:
    """The logits after the filters that raise or lower the logits of single tokens."""
    for filter in sampler.filters:
        if isinstance(filter, LogitBias | Penalty):
            logits = filter(logits, ids)
    return logits


def _candidates(
    ranks: list[tuple[int, int]],
    logits: Tensor,
    adjusted: Tensor,
    probabilities: tuple[Tensor, Tensor, Tensor],
    stages: list[Stage],
    tokenizer: Tokenizer,
) -> tuple[Candidate, ...]:
    """A row for each (rank, id) in ``ranks``; all tensors are [V].

    The ``probabilities`` are the model's own, those after the temperature, and those after all filters.
    """
    probs, tempered, final = probabilities
    ids, ends_tensor = intervals(final.cpu())
    ends = ends_tensor.tolist()
    index = {id: n for n, id in enumerate(ids.tolist())}
    rows = []
    for rank, id in ranks:
        n = index.get(id)
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
                cumulative=1.0 if n is None else ends[n],
                u_low=None if n is None else ends[n - 1] if n else 0.0,
                u_high=None if n is None else ends[n],
            )
        )
    return tuple(rows)


def _tempered(adjusted: Tensor, reports: Sequence[StageReport]) -> Tensor:
    """The logits ``adjusted`` [V] divided by the temperature of the step, if it has one."""
    for report in reports:
        if report.name == Temperature.name and report.value is not None:
            return Temperature(report.state.get("temperature", report.value))(adjusted)
    return adjusted


def _stage_reports(
    filters: Sequence[Filter], stages: Sequence[Stage], logits: Tensor, ids: Sequence[int]
) -> tuple[StageReport, ...]:
    reports, probs = [], probabilities(logits)
    for filter, stage in zip(filters, stages, strict=True):
        kept, after = torch.isfinite(stage.logits), probabilities(stage.logits)
        removed = float(probs[~kept].double().sum())
        changed = int((stage.logits[kept] != logits[kept]).sum())
        moved = float((after.double() - probs).clamp(min=0).sum())
        reports.append(
            StageReport(
                name=stage.name,
                value=stage.value,
                kept=int(kept.sum()),
                removed_mass=removed,
                changed=changed,
                moved=moved,
                settings=settings_of(filter),
                state=filter.state(logits, ids) if isinstance(filter, NumberFilter) else {},
            )
        )
        logits, probs = stage.logits, after
    return tuple(reports)


def _check(step: Step, final: Tensor, candidates: tuple[Candidate, ...]) -> Replay:
    """Repeat the choice from the rows alone: the token whose interval holds u, or without a draw the largest p."""
    u = step.choice.u
    if u is None:
        replayed = max(candidates, key=lambda c: (c.p_final, -c.id)).id
    else:
        inside = [c.id for c in candidates if c.u_low is not None and c.u_high is not None and c.u_low <= u < c.u_high]
        replayed = inside[0] if len(inside) == 1 else -1
    error = abs(float(final.double().sum()) - 1)
    return Replay(replayed == step.token and error < SUM_TOLERANCE, replayed, error)


def _own_temperature(sampler: Sampler) -> float:
    return next((f.value for f in sampler.filters if isinstance(f, Temperature)), 1.0)


def _with_own(temperatures: Sequence[float], sampler: Sampler) -> list[float]:
    """``temperatures`` with the sampler's own among them, before the first larger one; empty if there are none."""
    if not isinstance(temperatures, Sequence) or not all(isinstance(t, int | float) for t in temperatures):
        raise TypeError(f"temperatures must be a list of numbers, not {temperatures!r:.80}")
    own, found = _own_temperature(sampler), list(temperatures)
    if found and own not in found:
        found.insert(next((n for n, t in enumerate(found) if t > own), len(found)), own)
    return found


def _column(
    step: Step,
    sampler: Sampler,
    context_ids: Sequence[int],
    temperature: float,
    ids: list[int],
    tokenizer: Tokenizer,
) -> TemperatureColumn:
    """The step at another ``temperature``, with all other filters and u unchanged."""
    filters = [replace(f, value=temperature) if isinstance(f, Temperature) else f for f in sampler.filters]
    if not any(isinstance(f, Temperature) for f in filters):
        before = sum(isinstance(f, Vocabulary | GrammarFilter | LogitBias | Penalty) for f in filters)
        filters.insert(before, Temperature(temperature))
    filtered = Sampler(filters, sampler.seed).stages(step.logits, context_ids)[-1].logits
    own = next((f for f in filters if isinstance(f, Temperature)), Temperature(temperature))
    tempered = own(step.logits)
    final, alone, bits = probabilities(filtered), probabilities(tempered), Softmax(filtered).entropy()
    u = step.choice.u
    chosen = pick(final, None if temperature == 0 else u)
    return TemperatureColumn(
        temperature=temperature,
        used=temperature == _own_temperature(sampler),
        entropy=bits,
        choices=2**bits,
        id=chosen,
        text=tokenizer.token_text(chosen),
        bytes=tokenizer.token_bytes(chosen),
        probs={id: float(final[id]) for id in ids},
        alone={id: float(alone[id]) for id in ids},
        choices_alone=2 ** Softmax(tempered).entropy(),
    )
