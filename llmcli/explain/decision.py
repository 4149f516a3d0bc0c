"""Deciding between answers: the probability of each, against each other and against everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.explain.forward_pass import tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.selection import check_loaded
from llmcli.generation.choice_texts import check_several
from llmcli.generation.choices import Question, Scored, ask, score_choices, shares_of
from llmcli.generation.distribution import log_probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import PREFILL_CHUNK, last_logits
from llmcli.generation.score import MAX_LOGITS
from llmcli.text.chat_format import ChatFormat
from llmcli.text.chat_template import Message

SCORED_ALONE = 8  # choices that the check reads again, the most probable ones
SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ChoiceRow:
    """One choice: the ``text`` that follows the prompt, its tokens, and the log probability (nats) of each.

    ``p`` is the probability of the whole choice, ``share`` the same against the other choices alone; ``logprob`` is
    ln p. ``mean_logprob`` is per token, and ``mean_share`` the share if choices are compared by it. If the end of the
    text counts, it has a log probability of its own, the last one. ``begins`` are the indices of other choices that
    begin with this one: their probability is part of its own.
    """

    choice: str
    text: str
    tokens: tuple[VocabEntry, ...]
    logprobs: tuple[float, ...]
    logprob: float
    mean_logprob: float
    p: float
    share: float
    mean_share: float
    begins: tuple[int, ...]


@dataclass(frozen=True)
class DecideReport(Report):
    """The choices in the order given. ``best`` and ``best_per_token`` are the indices of the most probable ones.

    ``outside`` is the probability of everything that is no choice; ``other`` is the most probable token that begins
    none, ``p_other`` its probability. ``moved`` are the prompt's last tokens, if they count as part of the choices
    because they merge with one. ``end``: a choice counts only if the text ends after it.
    """

    model: str
    prompt_tokens: int
    moved: tuple[VocabEntry, ...]
    end: bool
    choices: tuple[ChoiceRow, ...]
    best: int
    best_per_token: int
    outside: float
    other: VocabEntry
    p_other: float
    check: Check


def decide(
    loaded: LoadedModel,
    prompt: str | Sequence[Message],
    choices: Sequence[str],
    *,
    delimiter: str | None = None,
    end: bool = False,
    form: ChatFormat | None = None,
    parse_special: bool = False,
) -> DecideReport:
    """Return the probability that the model continues ``prompt`` with each of ``choices``.

    Messages are a chat in ``form``, and a choice is the beginning of the reply. ``delimiter``, by default a space and
    in a chat nothing, separates a choice from a prompt that does not end with a space or line break. With ``end``, a
    choice counts only if the text ends after it.

    Raises the errors of ``check_several`` and ``ask``, and LlmcliError, with ``end``, if the model has no stop token.
    """
    check_loaded(loaded)
    check_several(choices)
    question = ask(loaded, prompt, choices, delimiter=delimiter, form=form, parse_special=parse_special)
    (scored,) = score_choices(loaded, [question], end=end)
    rows = _rows(loaded, choices, scored, end)
    return DecideReport(
        model=loaded.name,
        prompt_tokens=len(question.context) + len(question.moved),
        moved=tuple(vocab_entry(loaded.tokenizer, id) for id in question.moved),
        end=end,
        choices=rows,
        best=max(range(len(rows)), key=lambda n: rows[n].logprob),
        best_per_token=max(range(len(rows)), key=lambda n: rows[n].mean_logprob),
        outside=scored.outside,
        other=vocab_entry(loaded.tokenizer, scored.other[0]),
        p_other=scored.other[1],
        check=check(_alone_claim(loaded, scored, end), _sum_claim(rows, scored.outside)),
    )


def _rows(loaded: LoadedModel, choices: Sequence[str], scored: Scored, end: bool) -> tuple[ChoiceRow, ...]:
    ids = scored.question.choices
    shares, mean_shares = shares_of(scored.totals), shares_of(scored.means)
    return tuple(
        ChoiceRow(
            choice=choices[n],
            text=scored.question.texts[n],
            tokens=tuple(vocab_entry(loaded.tokenizer, id) for id in ids[n]),
            logprobs=scored.logprobs[n],
            logprob=scored.totals[n],
            mean_logprob=scored.means[n],
            p=math.exp(scored.totals[n]),
            share=shares[n],
            mean_share=mean_shares[n],
            begins=() if end else _begun_by(ids[n], ids),
        )
        for n in range(len(choices))
    )


def _begun_by(own: Sequence[int], choices: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The indices of those other ``choices`` that begin with the tokens of this one."""
    longer = (n for n, ids in enumerate(choices) if len(ids) > len(own))
    return tuple(n for n in longer if choices[n][: len(own)] == own)


def _alone_claim(loaded: LoadedModel, scored: Scored, end: bool) -> Claim:
    """Claim that the most probable choices get the same log probability in a pass of their own over the whole text."""
    totals, errors = scored.totals, []
    leading = sorted(range(len(totals)), key=lambda n: -totals[n])[:SCORED_ALONE]
    for n in leading:
        alone = _score_alone(loaded, scored.question, n, end)
        error = abs(math.fsum(alone) - math.fsum(scored.logprobs[n][-len(alone) :]))
        errors.append(relative_error(error, abs(math.fsum(alone))))
    which = "each choice gets" if len(leading) == len(totals) else f"the {len(leading)} most probable choices get"
    return Claim(f"{which} the same log probability alone, without the tree", max(errors), tolerance(loaded.model))


def _score_alone(loaded: LoadedModel, question: Question, number: int, end: bool) -> list[float]:
    """The log probabilities of one choice's last tokens, from a fresh pass over the prompt and the choice.

    They are those of all its tokens, unless their logits would take too much memory.
    """
    model, own = loaded.model, question.choices[number]
    cache = model.new_cache()
    cache.planned = question.length
    count = min(len(own) + end, PREFILL_CHUNK, max(MAX_LOGITS // model.config.vocab_size, 1))
    fed = [*question.context, *own] if end else [*question.context, *own[:-1]]
    logps = log_probabilities(last_logits(model, fed, cache, count))
    ending = [float(logps[-1, sorted(loaded.stop_ids)].logsumexp(dim=-1))] if end else []
    last = own[len(own) + end - count :]
    return [float(row[id]) for row, id in zip(logps, last, strict=False)] + ending


def _sum_claim(rows: Sequence[ChoiceRow], outside: float) -> Claim:
    """Claim that the choices' and all other probabilities sum to 1; the others were added up token by token.

    A choice that begins with another one is part of it.
    """
    parts = {n for row in rows for n in row.begins}
    total = math.fsum(row.p for n, row in enumerate(rows) if n not in parts) + outside
    return Claim("the choices and everything else sum to 1", abs(total - 1), SUM_TOLERANCE)
