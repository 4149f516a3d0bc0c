"""Embeddings: which tokens have similar vectors, and arithmetic with words (Mikolov et al. 2013)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.selection import check_loaded, check_whole, find_token
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.model.transformer import Transformer
from llmcli.text.tokenizer import Tokenizer

MAX_NUMBERS = 2**22  # of the embedding that are in memory in fp64 at a time
SHOWN_COMPONENTS = 8
COSINE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Term:
    """One word of the expression: added (sign 1) or subtracted (sign -1)."""

    sign: int
    piece: VocabEntry


@dataclass(frozen=True)
class Neighbour:
    """A token and the cosine of its embedding with the expression's vector.

    ``cosine`` is that of the raw vectors, ``centred`` the one after subtracting the mean embedding from both. ``given``
    marks a word of the expression. ``alone`` is the centered cosine with the report's ``baseline`` instead of the sum,
    and ``alone_rank`` the token's rank by it, 0 for the nearest; None without a baseline, and for words of the sum.
    """

    piece: VocabEntry
    cosine: float
    centred: float
    given: bool
    alone: float | None
    alone_rank: int | None


@dataclass(frozen=True)
class NeighboursReport(Report):
    """The tokens nearest to a sum of embeddings, by ``centred``. A word by itself is not among them.

    ``vector`` holds the first of the sum's ``size`` components and ``length`` is its norm, both without centering.
    ``baseline`` is the first word that is added, if there are several words: the tokens nearest to it, in ``alone``,
    show what the arithmetic changed. ``inputs`` says whether the words of the sum are ranked.
    """

    model: str
    terms: tuple[Term, ...]
    inputs: bool
    size: int
    length: float
    vector: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    baseline: VocabEntry | None
    alone: tuple[VocabEntry, ...]
    check: Check


def neighbours(loaded: LoadedModel, expression: str, *, top: int = 10, inputs: bool = True) -> NeighboursReport:
    """Return the ``top`` tokens nearest to ``expression``: a word, or a sum such as "king - man + woman".

    The mean is over the rows that belong to a token: some models pad their embedding with others. Without ``inputs``,
    the words of a sum are omitted; a single word always is, since its cosine with itself is 1.
    Raises LlmcliError if a word is not exactly one token, the vector of the expression is 0, or ``top`` is below 1.
    """
    check_loaded(loaded)
    check_whole("top", top, 1)
    model, tokenizer = loaded.model, loaded.tokenizer
    terms = parse_expression(expression, tokenizer, min(tokenizer.size, model.config.vocab_size))
    vector = _sum(model, terms)
    if not vector.any():
        raise usage_error(f"the vector of {expression!r} is 0, which has no neighbors", "remove a word")
    ids = _known(loaded)
    mean = _mean(model, ids)
    words = torch.tensor([term.piece.id for term in terms])
    hidden = words if len(terms) == 1 or not inputs else words[:0]
    nearest = _Ranking(model, ids, terms, mean, hidden)
    shown = nearest.order[:top]
    claims = [_cosine_claim(model, ids, terms, ids[shown], nearest.cosines[:, shown])]
    first = next((term for term in terms if term.sign > 0), None) if len(terms) > 1 else None
    alone = None
    if first is not None:
        alone = _Ranking(model, ids, (first,), mean, words)
        claims.append(_cosine_claim(model, ids, (first,), ids[shown], alone.cosines[:, shown], " with the first word"))
    return NeighboursReport(
        model=loaded.name,
        terms=terms,
        inputs=inputs and len(terms) > 1,
        size=len(vector),
        length=float(vector.norm()),
        vector=tuple(vector[:SHOWN_COMPONENTS].tolist()),
        neighbours=tuple(
            Neighbour(
                vocab_entry(tokenizer, int(ids[n])),
                cosine=float(nearest.cosines[0, n]),
                centred=float(nearest.cosines[1, n]),
                given=bool(torch.isin(ids[n], words)),
                alone=None if alone is None or n not in alone.ranks else float(alone.cosines[1, n]),
                alone_rank=None if alone is None else alone.ranks.get(n),
            )
            for n in shown.tolist()
        ),
        baseline=None if first is None else first.piece,
        alone=() if alone is None else tuple(vocab_entry(tokenizer, id) for id in ids[alone.order[:top]].tolist()),
        check=check(*claims),
    )


class _Ranking:
    """The tokens ``ids`` by their centered cosine with the sum of ``terms``, except those that are ``hidden``.

    ``cosines`` [2, V] are raw and centered. ``order`` has indices of ``ids``, the nearest first; ``ranks`` has the
    place of each in it.
    """

    def __init__(self, model: Transformer, ids: Tensor, terms: tuple[Term, ...], mean: Tensor, hidden: Tensor) -> None:
        vector = _sum(model, terms)
        shift = sum(term.sign for term in terms) * mean  # the sum contains the mean once per added word
        # Allocated once: small results allocated between large tensors would keep the memory of those alive.
        self.cosines = torch.empty(2, len(ids), dtype=torch.float64)
        for part, found in zip(parts(model, ids), parts(model, self.cosines), strict=True):
            found.copy_(_cosines(embeddings(model, part), vector, mean, shift))
        order = self.cosines[1].argsort(descending=True, stable=True)
        self.order = order[~torch.isin(ids[order], hidden)]
        self.ranks = {n: rank for rank, n in enumerate(self.order.tolist())}


def nearest_to_each(loaded: LoadedModel, words: Sequence[int], top: int) -> list[list[tuple[int, float]]]:
    """Return the ``top`` other tokens nearest to each of ``words`` by the centered cosine: ids, and the cosines.

    One pass over the embedding serves all words.
    """
    model, ids = loaded.model, _known(loaded)
    mean, wanted = _mean(model, ids), torch.tensor(words)
    own = _unit(embeddings(model, wanted) - mean)
    found: list[list[tuple[int, float]]] = [[] for _ in words]
    for part in parts(model, ids):
        cosines = own @ _unit(embeddings(model, part) - mean).T  # [words, part]
        values, indices = cosines.masked_fill(wanted[:, None] == part, -2.0).topk(min(top, len(part)))
        for nearest, near_ids, near in zip(found, part[indices].tolist(), values.tolist(), strict=True):
            nearest[:] = sorted([*nearest, *zip(near_ids, near, strict=True)], key=lambda pair: -pair[1])[:top]
    return found


def _unit(rows: Tensor) -> Tensor:
    unit: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    return unit


def _known(loaded: LoadedModel) -> Tensor:
    """The ids that are both in the tokenizer and in the embedding."""
    return torch.tensor([id for id in loaded.tokenizer.ids if id < loaded.model.config.vocab_size])


def _mean(model: Transformer, ids: Tensor) -> Tensor:
    """The mean embedding of ``ids``, [C], fp64. Raises LlmcliError if it is not finite."""
    mean = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for part in parts(model, ids):
        mean += embeddings(model, part).sum(dim=0) / len(ids)
    check_finite(mean, "embeddings")
    return mean


def _sum(model: Transformer, terms: tuple[Term, ...]) -> Tensor:
    """The sum of the embeddings of ``terms``, [C], fp64."""
    signs = torch.tensor([term.sign for term in terms], dtype=torch.float64)
    return signs @ embeddings(model, torch.tensor([term.piece.id for term in terms]))


def parse_expression(expression: str, tokenizer: Tokenizer, vocab_size: int) -> tuple[Term, ...]:
    """Parse words joined by + and -, with spaces around each sign. A word is the text of one token, or an id.

    Prefers the token that starts with a space over the one without. Raises LlmcliError if ``expression`` has another
    form, and the errors of ``find_token``.
    """
    if not isinstance(expression, str):
        raise TypeError(f"expected words, such as 'king - man + woman', not {expression!r:.80}")
    words = re.split(r"(?:^|\s+)([+-])\s+", expression.strip())
    words = words[1:] if not words[0] else ["+", *words]
    if not all(words) or not expression.strip() or re.search(r"\s[+-]$", expression.strip()):
        raise usage_error(
            f"{expression!r} is neither a word nor a sum of words", "give one, such as king or 'king - man + woman'"
        )
    return tuple(
        Term(1 if sign == "+" else -1, vocab_entry(tokenizer, _find_word(tokenizer, word, vocab_size)))
        for sign, word in zip(words[::2], words[1::2], strict=True)
    )


def _find_word(tokenizer: Tokenizer, word: str, vocab_size: int) -> int:
    if re.fullmatch(r"[0-9]+", word):
        return find_token(tokenizer, word, vocab_size)
    spaced = tokenizer.id_of(" " + word)
    if spaced is not None and spaced < vocab_size:
        return spaced
    try:
        return find_token(tokenizer, word, vocab_size)
    except LlmcliError as error:
        hint = "only single tokens have a vector: choose a shorter word, or give a token id"
        if re.search(r"\w[+-]\w", word):
            hint += "; in a sum, put spaces around + and -"
        raise usage_error(error.message, hint) from None


def embeddings(model: Transformer, ids: Tensor) -> Tensor:
    """Return the embeddings of ``ids`` [n] in fp64 on the CPU, [n, C]."""
    with torch.inference_mode():
        found: Tensor = model.embedding(ids.to(model.device))
        return found.cpu().double()


def parts(model: Transformer, numbers: Tensor) -> tuple[Tensor, ...]:
    """Split ``numbers`` [..., V] along V into parts whose embeddings fit into MAX_NUMBERS."""
    return torch.split(numbers, max(MAX_NUMBERS // model.config.hidden_size, 1), dim=-1)


def _cosines(rows: Tensor, vector: Tensor, mean: Tensor, shift: Tensor) -> Tensor:
    """The cosines of rows [n, C] with ``vector`` [C], raw and with the mean removed from both: [2, n]."""
    return torch.stack([cosine(rows, vector), cosine(rows - mean, vector - shift)])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosines of rows a [n, C] with b [C]; 0 for a vector of length 0."""
    lengths = a.norm(dim=-1) * b.norm()
    return torch.where(lengths == 0, 0.0, a @ b / lengths)


def _cosine_claim(
    model: Transformer, ids: Tensor, terms: tuple[Term, ...], shown: Tensor, cosines: Tensor, which: str = ""
) -> Claim:
    """Claim that the cosines of the tokens ``shown`` match the law of cosines, computed one by one.

    Everything is computed in another way: the mean is taken from the last row to the first, and subtracted from each
    word before the words are added.
    """
    mean, seen = torch.zeros(model.config.hidden_size, dtype=torch.float64), 0
    for part in reversed(parts(model, ids)):
        seen += len(part)
        mean += (embeddings(model, part) - mean).sum(dim=0) / seen
    errors = [torch.zeros((), dtype=torch.float64)]
    for origin, found in zip((torch.zeros_like(mean), mean), cosines, strict=True):
        vector = sum(
            (term.sign * (_embedding(model, term.piece.id) - origin) for term in terms), torch.zeros_like(mean)
        )
        for id, value in zip(shown.tolist(), found, strict=True):
            errors.append((_law_of_cosines(_embedding(model, id) - origin, vector) - value).abs())
    return Claim(f"each cosine{which} matches the law of cosines", float(torch.stack(errors).max()), COSINE_TOLERANCE)


def _embedding(model: Transformer, id: int) -> Tensor:
    return embeddings(model, torch.tensor([id]))[0]


def _law_of_cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of the angle between vectors [C], from the distance of their unit vectors; 0 for a length of 0."""
    if not a.any() or not b.any():
        return torch.zeros((), dtype=torch.float64)
    found: Tensor = 1 - (a / a.norm() - b / b.norm()).square().sum() / 2
    return found
