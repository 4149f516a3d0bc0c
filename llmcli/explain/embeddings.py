"""The view of vectors: which tokens does the model take for alike? And sums of words (Mikolov et al. 2013)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import LlmcliError, usage_error
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, vocab_entry
from llmcli.explain.selection import find_token
from llmcli.generation.loaded import LoadedModel
from llmcli.model.transformer import Transformer
from llmcli.text.tokenizer import Tokenizer

AT_ONCE = 2**22  # numbers of the table that are held in fp64 together
FIRST = 8  # components of the vector that are shown
CLOSE = 1e-9


@dataclass(frozen=True)
class Term:
    """One word of the sum: added (sign 1) or taken away (-1)."""

    sign: int
    piece: VocabEntry


@dataclass(frozen=True)
class Neighbour:
    """``cosine`` of its row with the vector; ``centred`` likewise, after the mean row is taken from every row."""

    piece: VocabEntry
    cosine: float
    centred: float


@dataclass(frozen=True)
class NeighboursReport(Report):
    """The tokens nearest to a sum of embedding rows, by the centred cosine; the words themselves are left out.

    ``vector`` are the first of its ``size`` components, as the table has them: no mean is taken away.
    """

    model: str
    terms: tuple[Term, ...]
    size: int
    length: float
    vector: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]
    check: Check


def neighbours_report(loaded: LoadedModel, expression: str, top: int) -> NeighboursReport:
    """The ``top`` neighbours of what ``expression`` adds up to, such as "king - man + woman".

    The mean is that of the rows that stand for a token: some models pad their table with others.
    Errors: a word that is several tokens, words that cancel each other.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    terms = parse(expression, tokenizer, min(tokenizer.size, model.config.vocab_size))
    signs = torch.tensor([term.sign for term in terms], dtype=torch.float64)
    words = torch.tensor([term.piece.id for term in terms])
    vector = signs @ rows(model, words)
    if not vector.any():
        raise usage_error(f"the vector of {expression!r} is 0, which is like nothing", "leave a word out")
    ids = torch.tensor([id for id in tokenizer.ids if id < model.config.vocab_size])
    # Both written into what is there before: small results kept between large parts would keep their memory too.
    mean, cosines = torch.zeros_like(vector), torch.empty(2, len(ids), dtype=torch.float64)
    for part in parts(model, ids):
        mean += rows(model, part).sum(dim=0) / len(ids)
    shared = signs.sum() * mean  # each row of the sum has it once
    for part, found in zip(parts(model, ids), parts(model, cosines), strict=True):
        found.copy_(_cosines(rows(model, part), vector, mean, shared))
    order = cosines[1].argsort(descending=True, stable=True)
    order = order[~torch.isin(ids[order], words)][:top]
    return NeighboursReport(
        model=loaded.name,
        terms=terms,
        size=len(vector),
        length=float(vector.norm()),
        vector=tuple(vector[:FIRST].tolist()),
        neighbours=tuple(
            Neighbour(vocab_entry(tokenizer, int(ids[place])), *cosines[:, place].tolist()) for place in order.tolist()
        ),
        check=check(_claim(model, ids, terms, ids[order], cosines[:, order])),
    )


def parse(expression: str, tokenizer: Tokenizer, count: int) -> tuple[Term, ...]:
    """Words with + or - between them, spaces around: each an id below ``count``, or one token's text.

    Of two tokens that differ by a space in front, the one with it is meant.
    """
    words = re.split(r"(?:^|\s+)([+-])\s+", expression.strip())
    words = words[1:] if not words[0] else ["+", *words]
    if not all(words) or not expression.strip():
        raise usage_error(f"{expression!r} is no word, nor a sum of words", "as in king, or 'king - man + woman'")
    return tuple(
        Term(1 if sign == "+" else -1, vocab_entry(tokenizer, _id(tokenizer, word, count)))
        for sign, word in zip(words[::2], words[1::2], strict=True)
    )


def _id(tokenizer: Tokenizer, word: str, count: int) -> int:
    if re.fullmatch(r"[0-9]+", word):
        return find_token(tokenizer, word, count)
    spaced = tokenizer.id_of(" " + word)
    if spaced is not None and spaced < count:
        return spaced
    try:
        return find_token(tokenizer, word, count)
    except LlmcliError as error:
        raise usage_error(error.message, "only a token has a vector: take a shorter word, or give an id") from None


def rows(model: Transformer, ids: Tensor) -> Tensor:
    """Rows of the embedding in fp64 on the CPU, [n, C]."""
    with torch.inference_mode():
        found: Tensor = model.embedding(ids.to(model.device))
        return found.cpu().double()


def parts(model: Transformer, ids: Tensor) -> tuple[Tensor, ...]:
    """The ids, or what there is of each [..., V], so many at a time as may have their rows held together."""
    return torch.split(ids, max(AT_ONCE // model.config.hidden_size, 1), dim=-1)


def _cosines(table: Tensor, vector: Tensor, mean: Tensor, shared: Tensor) -> Tensor:
    """Of each row [n, C] with the vector, raw and with what they share taken from each: [2, n]."""
    return torch.stack([cosine(table, vector), cosine(table - mean, vector - shared)])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of rows a [n, C] with b [C]; 0 where one has no length."""
    lengths = a.norm(dim=-1) * b.norm()
    return torch.where(lengths == 0, 0.0, a @ b / lengths)


def _claim(model: Transformer, ids: Tensor, terms: tuple[Term, ...], shown: Tensor, cosines: Tensor) -> Claim:
    """The rows ``shown`` again, one by one, from the sides of the triangle that two vectors of length 1 span.

    The mean is taken anew, from the last row to the first, and here from each word before they are added.
    """
    mean, seen = torch.zeros(model.config.hidden_size, dtype=torch.float64), 0
    for part in reversed(parts(model, ids)):
        seen += len(part)
        mean += (rows(model, part) - mean).sum(dim=0) / seen
    errors = [torch.zeros((), dtype=torch.float64)]
    for away, found in zip((torch.zeros_like(mean), mean), cosines, strict=True):
        vector = sum((term.sign * (_row(model, term.piece.id) - away) for term in terms), torch.zeros_like(mean))
        for id, value in zip(shown.tolist(), found, strict=True):
            errors.append((_by_sides(_row(model, id) - away, vector) - value).abs())
    return Claim("each cosine is that of the triangle's sides", float(torch.stack(errors).max()), CLOSE)


def _row(model: Transformer, id: int) -> Tensor:
    return rows(model, torch.tensor([id]))[0]


def _by_sides(a: Tensor, b: Tensor) -> Tensor:
    """The cosine between vectors [C], by the law of cosines; 0 where one has no length."""
    if not a.any() or not b.any():
        return torch.zeros((), dtype=torch.float64)
    found: Tensor = 1 - (a / a.norm() - b / b.norm()).square().sum() / 2
    return found
