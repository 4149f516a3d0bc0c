"""A guided tour: the views in the order in which a newcomer should meet them, all of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.explain.attention.position_encoding import PositionReport, position
from llmcli.explain.attention.query_key_value import HeadReport, match_keys
from llmcli.explain.attention.weights import AttendReport, attend
from llmcli.explain.attribution import WhyReport, why
from llmcli.explain.embeddings import NeighboursReport, neighbours
from llmcli.explain.lenses.logit_lens import LensReport
from llmcli.explain.report import Check, Claim, GeneratedToken, Report, check
from llmcli.explain.sampling_step import StepReport, default_sampler, generated_token_of, step_report
from llmcli.explain.selection import check_loaded
from llmcli.explain.tokens.tokenization import Tokenization, tokenize
from llmcli.explain.tour_example import answer_forms, choose_example, first_from, telling_head, telling_word
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.steps import steps

SEED = 1
GENERATED = 12  # tokens at the stop about the loop
ALTERNATIVES = 3  # for each of them
TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
SHOWN = 8  # candidates, and neighbours


@dataclass(frozen=True)
class TourReport(Report):
    """A report per stop; ``begun`` is the text up to the position that most stops look at, which the model continues.

    ``tied`` says whether the head is the embedding, ``unrotated`` how many layers have no rotary positions.
    ``head_at`` is one head at that position. ``forms`` says whether ``lens`` shows an answer that forms, and
    ``first_from`` from which layer on it is the most probable token.
    """

    model: str
    context: int
    layers: int
    heads: int
    tied: bool
    unrotated: int
    text: str
    begun: str
    tokens: Tokenization
    vectors: NeighboursReport
    position: PositionReport
    attention: AttendReport
    head_at: HeadReport
    lens: LensReport
    forms: bool
    first_from: int | None
    step: StepReport
    loop: tuple[GeneratedToken, ...]
    why: WhyReport
    check: Check


def tour(loaded: LoadedModel, text: str | None = None) -> TourReport:
    """Return every view of ``text``, or of a built-in sentence, at the position where the answer forms most clearly.

    Raises LlmcliError if the text has fewer than three tokens or is longer than the context.
    """
    check_loaded(loaded)
    tokenizer, config = loaded.tokenizer, loaded.model.config
    example = choose_example(loaded, text)
    ids, at = example.ids, example.lens.position
    first_step, loop = _generate(loaded, ids[: at + 1])
    tokens = tokenize(tokenizer, example.text)
    vectors = neighbours(loaded, str(telling_word(loaded, ids)), top=SHOWN)
    positions = position(loaded, ids[: at + 1])
    attention = attend(loaded, ids, position=at)
    causes = why(loaded, ids, position=at)
    head_at = match_keys(loaded, ids, telling_head(attention, causes), position=at)
    stops = (tokens, vectors, positions, attention, head_at, example.lens, causes)
    failed = sum(not stop.check.ok for stop in stops) + (not first_step.check.ok)
    return TourReport(
        model=loaded.name,
        context=config.max_position_embeddings,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        tied=config.tie_word_embeddings,
        unrotated=len(config.layers_without_rope),
        text=example.text,
        begun=tokenizer.decode(ids[: at + 1]),
        tokens=tokens,
        vectors=vectors,
        position=positions,
        attention=attention,
        head_at=head_at,
        lens=example.lens,
        forms=answer_forms(example.lens),
        first_from=first_from(example.lens),
        step=first_step,
        loop=loop,
        why=causes,
        check=check(Claim("the checks of all stops hold", failed, 0.0)),
    )


def _generate(loaded: LoadedModel, ids: Sequence[int]) -> tuple[StepReport, tuple[GeneratedToken, ...]]:
    """Continue ``ids``: a report on the first step, and the tokens generated."""
    sampler = default_sampler(loaded, SEED)
    taken = list(steps(loaded.model, ids, sampler=sampler, max_new_tokens=GENERATED, stop_ids=loaded.stop_ids))
    first = step_report(
        taken[0],
        sampler,
        loaded.tokenizer,
        prompt_ids=ids,
        context_ids=ids,
        top=SHOWN,
        temperatures=TEMPERATURES,
    )
    return first, tuple(generated_token_of(step, loaded.tokenizer, ALTERNATIVES) for step in taken)
