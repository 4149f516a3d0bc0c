"""A text, token by token, with everything that the views show about each choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.attention.layer_heads import attention_output_claim
from llmcli.explain.attention.weights import sum_claim
from llmcli.explain.attribution import WhyReport, why_of
from llmcli.explain.continuations import BranchReport, branch
from llmcli.explain.forward_pass import ForwardPass, observe
from llmcli.explain.lenses.logit_lens import LensReport, lens_of
from llmcli.explain.report import Check, Claim, VocabEntry, check, vocab_entry
from llmcli.explain.residual_stream import attribute
from llmcli.explain.sampling_step import StepReport, step_report
from llmcli.explain.selection import find_heads
from llmcli.generation.distribution import check_finite, rank
from llmcli.generation.filters import Filter, MinP, Temperature, TopK, TopP, filter_of
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Choice, Sampler
from llmcli.generation.steps import Step, steps
from llmcli.storage.checkpoint import Progress

CONTROLS = (Temperature, TopK, TopP, MinP)  # the filters that can be recomputed with other values
TOP = 12  # candidates before and after the filters
WIDTH, DEPTH = 3, 3  # of the tree of continuations


@dataclass(frozen=True)
class Control:
    """A filter whose value can be changed; ``value`` is the one that the text was generated with."""

    name: str
    value: float


@dataclass(frozen=True)
class HeadMaps:
    """What each head of the attention ``layers`` does at the last of S positions.

    ``weights`` [layers, H, S] is what it looks at, ``contributions`` [layers, H, S] what it adds from there to the
    difference of the logits of ``WhyReport``.
    """

    layers: tuple[int, ...]
    weights: Tensor
    contributions: Tensor


@dataclass(frozen=True)
class ExplainedChoice:
    """One generated token: its step, and the views of the position before it.

    ``logits`` [V] are the model's own, ``adjusted`` [V] those after the filters that come before the controls.
    ``given``: the sampler did not choose the token.
    """

    logits: Tensor
    adjusted: Tensor
    step: StepReport
    lens: LensReport
    why: WhyReport
    branch: BranchReport
    heads: HeadMaps | None  # None for a model without attention
    given: bool = False


@dataclass(frozen=True)
class Walkthrough:
    """A generated text: the prompt's tokens and the ``choices`` after it. ``checked`` has all that the views claim."""

    model: str
    prompt: tuple[VocabEntry, ...]
    choices: tuple[ExplainedChoice, ...]
    controls: tuple[Control, ...]
    fixed: tuple[str, ...]  # the names of the filters before the controls
    seed: int
    checked: Check


def walk_through(
    loaded: LoadedModel,
    ids: Sequence[int],
    sampler: Sampler,
    order: Sequence[str],
    max_new_tokens: int,
    progress: Progress | None = None,
) -> Walkthrough:
    """Generate up to ``max_new_tokens`` after the prompt ``ids``, and look at each choice with every view.

    ``order`` has the names of the filters in the order in which they run, also of those that are off.
    ``progress`` receives the tokens done and the most there can be.
    Raises LlmcliError if a filter is on that is not recomputed with other values and does not come before those that
    are, or the prompt is empty or fills the context.
    """
    fixed, controls = split_chain(sampler.filters, order)
    context, choices, claims = list(ids), list[ExplainedChoice](), list[Claim]()
    for step in steps(
        loaded.model, ids, sampler=sampler, max_new_tokens=max_new_tokens, stop_ids=loaded.stop_ids, rolls=False
    ):
        choice, found = _choice(loaded, step, sampler, len(fixed), ids, context)
        choices.append(choice)
        claims += found
        context.append(step.token)
        if progress is not None:
            progress(len(choices), max_new_tokens)
    return _walkthrough(loaded, ids, choices, (fixed, controls), sampler.seed, claims)


def explain_token(
    loaded: LoadedModel,
    ids: Sequence[int],
    token: int,
    sampler: Sampler,
    order: Sequence[str],
    between: Callable[[], None] = lambda: None,
) -> Walkthrough:
    """Look at ``token`` after the prompt ``ids`` with every view. It is given if ``sampler`` chooses another one.

    ``between`` is called between the views; what it raises ends them.
    Raises LlmcliError as ``walk_through`` does.
    """
    fixed, controls = split_chain(sampler.filters, order)
    (step,) = steps(loaded.model, ids, sampler=sampler, max_new_tokens=1)
    given = step.token != token
    if given:
        final = float(sampler.final(step.logits, ids)[token])
        softmax = step.choice.softmax
        choice = Choice(token, softmax.prob(token), final, rank(step.logits, token), None, softmax)
        step = replace(step, token=token, choice=choice)
    explained, claims = _choice(loaded, step, sampler, len(fixed), ids, ids, given=given, between=between)
    return _walkthrough(loaded, ids, [explained], (fixed, controls), sampler.seed, claims)


def _walkthrough(
    loaded: LoadedModel,
    ids: Sequence[int],
    choices: Sequence[ExplainedChoice],
    chain: tuple[tuple[Filter, ...], tuple[Control, ...]],
    seed: int,
    claims: Sequence[Claim],
) -> Walkthrough:
    """The choices after ``ids`` with what was claimed about them; ``chain`` is that of ``split_chain``."""
    return Walkthrough(
        model=loaded.name,
        prompt=tuple(vocab_entry(loaded.tokenizer, id) for id in ids),
        choices=tuple(choices),
        controls=chain[1],
        fixed=tuple(filter.name for filter in chain[0]),
        seed=seed,
        checked=check(*_worst(claims)),
    )


def split_chain(filters: Sequence[Filter], order: Sequence[str]) -> tuple[tuple[Filter, ...], tuple[Control, ...]]:
    """Return the filters before the controls, and the controls in their order, with the value of "off" if they are off.

    Raises LlmcliError unless the other filters come first and the temperature is a number.
    """
    first = next((n for n, filter in enumerate(filters) if isinstance(filter, CONTROLS)), len(filters))
    for n, filter in enumerate(filters):
        dynamic = isinstance(filter, Temperature) and filter.range > 0
        if dynamic or not (isinstance(filter, CONTROLS) or (n < first and _is_fixed(filter))):
            name = "dynatemp-range" if dynamic else filter.name
            raise usage_error(f"the page cannot recompute a sampler with {name}", kind="not-recomputed")
    values = {filter.name: filter.value for filter in filters[first:]}
    controls = []
    for name in order:
        cls = filter_of(name)
        if cls in CONTROLS:
            value = values.get(name, cls.option.off)
            assert value is not None
            controls.append(Control(name, value))
    return tuple(filters[:first]), tuple(controls)


def _is_fixed(filter: Filter) -> bool:
    """Whether no control changes what the filter does if it comes first; XTC depends on u."""
    return filter.name not in ("xtc-probability", "mirostat-tau", "typical-p", "top-n-sigma")


def _choice(
    loaded: LoadedModel,
    step: Step,
    sampler: Sampler,
    fixed: int,
    prompt_ids: Sequence[int],
    context: Sequence[int],
    *,
    given: bool = False,
    between: Callable[[], None] = lambda: None,
) -> tuple[ExplainedChoice, list[Claim]]:
    """One choice after ``context``, and what its views claim; ``fixed`` filters come before the controls."""
    report = step_report(step, sampler, loaded.tokenizer, prompt_ids=prompt_ids, context_ids=context, top=TOP)
    stages = sampler.stages(step.logits, context)[:fixed]
    between()
    observed, config = observe(loaded.model, context), loaded.model.config
    between()
    heads = find_heads(config, None, None) if config.attending else []
    lensed = lens_of(loaded, observed, step.token, [None, *range(config.num_hidden_layers)])
    between()
    explained = why_of(loaded, observed, step.token, None, heads, "all heads")
    between()
    tree = branch(loaded, context, width=WIDTH, depth=DEPTH)
    between()
    maps, claims = _heads(loaded, observed, (explained.token.id, explained.other.id))
    replayed = Claim("replaying each draw gives its token", float(report.check.replayed_id != step.token), 0.0)
    choice = ExplainedChoice(
        logits=step.logits.float().cpu(),
        adjusted=(stages[-1].logits if stages else step.logits).float().cpu(),
        step=report,
        lens=lensed,
        why=explained,
        branch=tree,
        heads=maps,
        given=given,
    )
    return choice, [
        *([] if given else [replayed]),
        *claims,
        *lensed.check.claims,
        *explained.check.claims,
        *tree.check.claims,
    ]


def _heads(loaded: LoadedModel, observed: ForwardPass, pair: tuple[int, int]) -> tuple[HeadMaps | None, list[Claim]]:
    """The maps of all heads at the last position, and the claims of ``attend``."""
    layers = tuple(observed.trace.attention)
    if not layers:
        return None, []
    weights = torch.stack([observed.trace.attention[layer][0, :, -1] for layer in layers])
    check_finite(weights, "attention weights")
    split = attribute(loaded.model, observed, pair).heads
    contributions = (split[0] - split[1])[list(layers)]
    claims = [sum_claim(loaded.model, weights.flatten(0, 1)), attention_output_claim(loaded.model, observed, layers)]
    return HeadMaps(layers, weights.cpu(), contributions.cpu()), claims


def _worst(claims: Sequence[Claim]) -> list[Claim]:
    """Each statement once, with the largest error that it has in ``claims``; a NaN counts as the largest."""
    worst: dict[str, Claim] = {}
    for claim in claims:
        before = worst.get(claim.what)
        if before is None or not claim.error <= before.error:
            worst[claim.what] = claim if before is None else replace(claim, limit=max(claim.limit, before.limit))
    return list(worst.values())
