"""What the tour shows: a sentence and a position where an answer forms, a word with close neighbours, a head."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmcli.errors import usage_error
from llmcli.explain.attention.weights import AttendReport
from llmcli.explain.attribution import WhyReport
from llmcli.explain.embeddings import nearest_to_each
from llmcli.explain.forward_pass import check_length
from llmcli.explain.lenses.logit_lens import LensReport, lens
from llmcli.generation.distribution import probabilities
from llmcli.generation.loaded import LoadedModel

SENTENCES = (
    "The sun was shining and the birds were singing",
    "The cat that I saw yesterday was sleeping",
    "In winter it is cold and in summer it is hot",
)
CANDIDATES = 16  # positions at the end of a text, from which one is chosen
TRIED = 4  # of those, the ones with the most probable answers: each needs a lens
RISE = 10  # how many times as probable as after the embedding an answer must be at the end
KEPT = 0.5  # the share of its largest probability that it must keep until the end
LOOKS = 0.3  # the smallest weight that counts as looking at a token
NEAREST = 8  # neighbours by which a word is judged
WORD = re.compile(r" [^\W\d_]{4,}")


@dataclass(frozen=True)
class TourExample:
    """A text, its ids, and the lens at the position that the tour looks at."""

    text: str
    ids: list[int]
    lens: LensReport


def choose_example(loaded: LoadedModel, text: str | None) -> TourExample:
    """Return an example in which an answer forms, if there is one: of ``text``, or of SENTENCES.

    Prefers answers that are whole words, and among them the most probable one. Raises LlmcliError if ``text`` has fewer
    than three tokens or is longer than the context.
    """
    found = []
    for sentence in SENTENCES if text is None else (text,):
        ids = loaded.prompt_ids(sentence)
        if len(ids) < 3:
            raise usage_error("the tour needs a sentence of a few words", "give a longer one, or none")
        check_length(loaded.model, len(ids))
        found += [(*rank, sentence, ids, at) for at, rank in _answers(loaded, ids)]
    found.sort(key=lambda candidate: candidate[:2], reverse=True)
    examples = []
    for _, _, sentence, ids, at in found[:TRIED]:
        examples.append(TourExample(sentence, ids, lens(loaded, ids, position=at)))
        if answer_forms(examples[-1].lens):
            return examples[-1]
    return examples[0]


def _answers(loaded: LoadedModel, ids: Sequence[int]) -> list[tuple[int, tuple[bool, float]]]:
    """The last positions, in the second half of the text, and for each whether a word is most probable next, and its p.

    The position at the end of the context is excluded, since nothing can follow it.
    """
    model = loaded.model
    first = max(2, len(ids) // 2, len(ids) - CANDIDATES)
    positions = range(first, max(min(len(ids), model.config.max_position_embeddings - 1), first + 1))
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor([ids], device=model.device))[0]
        logits = [model.unembed(hidden[at : at + 1])[0] for at in positions]
    tops = [probabilities(each).max(dim=-1) for each in logits]
    words = [WORD.fullmatch(loaded.tokenizer.token_text(int(top.indices))) is not None for top in tops]
    return [(at, (word, float(top.values))) for at, word, top in zip(positions, words, tops, strict=True)]


def answer_forms(report: LensReport) -> bool:
    """Return whether the layers form the target: it is not first after the embedding, but rises and stays probable."""
    first, last = report.rows[0], report.rows[-1]
    rises = first.rank > 0 and last.rank == 0 and last.p >= RISE * first.p
    return rises and last.p >= KEPT * max(row.p for row in report.rows)


def first_from(report: LensReport) -> int | None:
    """Return from which layer on the target is the most probable token; None for the embedding or for no layer."""
    layer = None
    for row in reversed(report.rows):
        if row.rank > 0:
            break
        layer = row.layer
    return layer


def telling_word(loaded: LoadedModel, ids: Sequence[int]) -> int:
    """Return the token of ``ids`` whose nearest tokens are closest to it and are other whole words.

    Prefers whole words, then tokens of letters, then any token.
    """
    texts = {id: loaded.tokenizer.token_text(id) for id in dict.fromkeys(ids) if id not in loaded.tokenizer.special_ids}
    words = [id for id, text in texts.items() if WORD.fullmatch(text)]
    words = words or [id for id, text in texts.items() if text.strip().isalpha()] or list(texts) or [ids[-1]]
    near = nearest_to_each(loaded, words, NEAREST)
    scores = [
        sum(cosine for id, cosine in found if _another_word(loaded, word, id))
        for word, found in zip(words, near, strict=True)
    ]
    return words[max(range(len(words)), key=lambda n: scores[n])]


def _another_word(loaded: LoadedModel, word: int, id: int) -> bool:
    """Whether ``id`` is a whole word, and not ``word`` in another case."""
    text, other = (loaded.tokenizer.token_text(each) for each in (word, id))
    return WORD.fullmatch(other) is not None and other.strip().casefold() != text.strip().casefold()


def telling_head(attention: AttendReport, causes: WhyReport) -> tuple[int, int]:
    """Return the (layer, head) that the tour shows: one that looks at another token, and adds most to the answer.

    The candidates are the heads that give a token between the first one and the token itself the largest weight. If
    none gives LOOKS or more, it is the one that gives most.
    """
    between = attention.sources[1:-1] or attention.sources
    added = {part.name: part.difference for part in causes.parts}
    looking = [source for source in between if source.weight >= LOOKS]
    if looking:
        found = max(looking, key=lambda source: added[f"L{source.layer}.H{source.head}"])
    else:
        found = max(between, key=lambda source: source.weight)
    return found.layer, found.head
