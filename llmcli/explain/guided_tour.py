"""The views in the order in which a newcomer should meet them, all of one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmcli.errors import usage_error
from llmcli.explain.attention import AttendReport, attend
from llmcli.explain.embeddings import NeighboursReport, neighbours_report
from llmcli.explain.logit_lens import LensReport, lens
from llmcli.explain.position_encoding import PositionReport, position_report
from llmcli.explain.report import Check, Claim, GeneratedToken, Report, check
from llmcli.explain.sampling_step import StepReport, generated_token_of, step_report
from llmcli.explain.tokenization import Tokenization, tokenization
from llmcli.generation.filters import FILTERS, filter_chain
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.generation.steps import steps

SEED = 1
WRITTEN = 12  # tokens that the loop writes
TEMPERATURES = (0.0, 0.5, 1.0, 1.5)
SHOWN = 8  # candidates


@dataclass(frozen=True)
class TourReport(Report):
    """One report a stop; ``begun`` is the part of the text behind which the model is asked to go on."""

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


def tour_report(loaded: LoadedModel, text: str) -> TourReport:
    """Every view of ``text``, stopped before its last word: what does the model expect there?

    Errors: a text of fewer than three tokens, or longer than the context.
    """
    tokenizer, config = loaded.tokenizer, loaded.model.config
    ids = loaded.prompt_ids(text)
    if len(ids) < 3:
        raise usage_error("the tour needs a sentence of a few words", "give a longer one, or none")
    at = before_last_word([tokenizer.token_text(id) for id in ids])
    step, loop = _walk(loaded, ids[: at + 1])
    tokens = tokenization(tokenizer, text)
    vectors = neighbours_report(loaded, str(longest_word(loaded, ids)), SHOWN)
    position = position_report(loaded, ids[: at + 1])
    attention = attend(loaded, ids, position=at)
    layers = lens(loaded, ids, position=at)
    checks = (tokens.check, vectors.check, position.check, attention.check, layers.check)
    failed = sum(not each.ok for each in checks) + (not step.check.ok)
    return TourReport(
        model=loaded.name,
        context=config.max_position_embeddings,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        text=text,
        begun=tokenizer.decode(ids[: at + 1]),
        tokens=tokens,
        vectors=vectors,
        position=position,
        attention=attention,
        lens=layers,
        step=step,
        loop=loop,
        check=check(Claim("the checks of all stops hold", failed, 0.0)),
    )


def before_last_word(texts: Sequence[str]) -> int:
    """The position in front of the last token that begins with a space; the last but one where none does."""
    starts = [n for n, text in enumerate(texts) if n > 1 and text.startswith(" ")]
    return (starts[-1] if starts else len(texts) - 1) - 1


def longest_word(loaded: LoadedModel, ids: Sequence[int]) -> int:
    """The id of the longest token of letters: what stands for a whole word, if one does."""
    return max(ids, key=lambda id: len(text) if (text := loaded.tokenizer.token_text(id).strip()).isalpha() else 0)


def _walk(loaded: LoadedModel, ids: Sequence[int]) -> tuple[StepReport, tuple[GeneratedToken, ...]]:
    """The first step behind ``ids`` explained, and the tokens of the first few."""
    chain = filter_chain(list(FILTERS), loaded.defaults.sampling)
    sampler = Sampler([*loaded.vocabulary_filter(), *chain], SEED)
    taken = list(steps(loaded.model, ids, sampler=sampler, max_new_tokens=WRITTEN, stop_ids=loaded.stop_ids))
    first = step_report(
        taken[0],
        sampler,
        loaded.tokenizer,
        prompt_ids=ids,
        context_ids=ids,
        top=SHOWN,
        temperatures=TEMPERATURES,
    )
    return first, tuple(generated_token_of(step, loaded.tokenizer, rivals=3) for step in taken)
