"""A guided tour: the views in the order in which a newcomer should meet them, all of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.errors import usage_error
from llmcli.explain.attention import AttendReport, attend
from llmcli.explain.embeddings import NeighboursReport, neighbours
from llmcli.explain.logit_lens import LensReport, lens
from llmcli.explain.position_encoding import PositionReport, position
from llmcli.explain.report import Check, Claim, GeneratedToken, Report, check
from llmcli.explain.sampling_step import StepReport, default_sampler, generated_token_of, step_report
from llmcli.explain.tokenization import Tokenization, tokenize
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.steps import steps

SENTENCE = "The cat that I saw yesterday was sleeping"
SEED = 1
GENERATED = 12  # tokens at the last stop
ALTERNATIVES = 3  # for each of them
TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
SHOWN = 8  # candidates, and neighbours


@dataclass(frozen=True)
class TourReport(Report):
    """A report per stop; ``begun`` is the text before its last word, which the model continues."""

    model: str
    context: int
    layers: int
    heads: int
    text: str
    begun: str
    tokens: Tokenization
    vectors: NeighboursReport
    position: PositionReport
    attention: AttendReport
    lens: LensReport
    step: StepReport
    loop: tuple[GeneratedToken, ...]
    check: Check


def tour(loaded: LoadedModel, text: str | None = None) -> TourReport:
    """Return every view of ``text``, or SENTENCE, at the position before its last word.

    Raises LlmcliError if the text has fewer than three tokens or is longer than the context.
    """
    tokenizer, config = loaded.tokenizer, loaded.model.config
    text = SENTENCE if text is None else text
    ids = loaded.prompt_ids(text)
    if len(ids) < 3:
        raise usage_error("the tour needs a sentence of a few words", "give a longer one, or none")
    at = before_last_word([tokenizer.token_text(id) for id in ids])
    first_step, loop = _generate(loaded, ids[: at + 1])
    tokens = tokenize(tokenizer, text)
    vectors = neighbours(loaded, str(longest_word(loaded, ids)), top=SHOWN)
    positions = position(loaded, ids[: at + 1])
    attention = attend(loaded, ids, position=at)
    layers = lens(loaded, ids, position=at)
    stops = (tokens, vectors, positions, attention, layers)
    failed = sum(not stop.check.ok for stop in stops) + (not first_step.check.ok)
    return TourReport(
        model=loaded.name,
        context=config.max_position_embeddings,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        text=text,
        begun=tokenizer.decode(ids[: at + 1]),
        tokens=tokens,
        vectors=vectors,
        position=positions,
        attention=attention,
        lens=layers,
        step=first_step,
        loop=loop,
        check=check(Claim("the checks of all stops hold", failed, 0.0)),
    )


def before_last_word(texts: Sequence[str]) -> int:
    """Return the position before the last token that starts with a space, or if none does before the last token."""
    starts = [n for n, text in enumerate(texts) if n > 1 and text.startswith(" ")]
    return (starts[-1] if starts else len(texts) - 1) - 1


def longest_word(loaded: LoadedModel, ids: Sequence[int]) -> int:
    """Return the id of the longest token that consists of letters, which is a whole word if one of the tokens is."""
    return max(ids, key=lambda id: len(text) if (text := loaded.tokenizer.token_text(id).strip()).isalpha() else 0)


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
