"""The view of vectors: which tokens does the model take for alike? And sums of words (Mikolov et al. 2013)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.check import Check, Claim, check
from llmcli.explain.piece import Piece, piece
from llmcli.explain.places import find_token
from llmcli.generate.loaded import LoadedModel
from llmcli.model.transformer import Transformer
from llmcli.text.tokenizer import Tokenizer

AT_ONCE = 2**22  # numbers of the table that are held in fp64 together
FIRST = 8  # components of the vector that are shown
CLOSE = 1e-9


@dataclass(frozen=True)
class Term:
    """One word of the sum: added (sign 1) or taken away (-1)."""

    sign: int
    piece: Piece


@dataclass(frozen=True)
class Neighbour:
    """``cosine`` of its row with the vector; ``centred`` likewise, after the mean of all rows is taken from both."""

    piece: Piece
    cosine: float
    centred: float


@dataclass(frozen=True)
class NeighboursReport:
    """The tokens nearest to a sum of embedding rows, by the centred cosine; the words themselves are left out.

    ``vector`` are the first of its ``size`` components.
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

    Errors: a word that is several tokens.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    count = min(tokenizer.size, model.config.vocab_size)
    terms = parse(expression, tokenizer, count)
    ids = torch.tensor([term.piece.id for term in terms])
    signs = torch.tensor([term.sign for term in terms], dtype=torch.float64)
    vector = signs @ rows(model, ids)
    mean = torch.stack([part.sum(dim=0) for _, part in table(model, count)]).sum(dim=0) / count
    cosines = torch.stack([torch.cat(both) for both in zip(*_cosines(model, count, vector, mean), strict=True)])
    order = cosines[1].index_fill(0, ids, -math.inf).argsort(descending=True, stable=True)[:top]
    order = order[~torch.isin(order, ids)]
    return NeighboursReport(
        model=loaded.name,
        terms=terms,
        size=len(vector),
        length=float(vector.norm()),
        vector=tuple(vector[:FIRST].tolist()),
        neighbours=tuple(
            Neighbour(piece(tokenizer, id), float(cosines[0, id]), float(cosines[1, id])) for id in order.tolist()
        ),
        check=check(_claim(model, count, vector, order, cosines[:, order])),
    )


def parse(expression: str, tokenizer: Tokenizer, count: int) -> tuple[Term, ...]:
    """Words with + or - between them, spaces around; each is one token, if possible that with a space before it."""
    words = re.split(r"(?:^|\s+)([+-])\s+", expression.strip())
    words = words[1:] if not words[0] else ["+", *words]
    if not all(words) or not expression.strip():
        raise usage_error(f"{expression!r} is no word, nor a sum of words", "as in king, or 'king - man + woman'")
    return tuple(
        Term(1 if sign == "+" else -1, piece(tokenizer, _id(tokenizer, word, count)))
        for sign, word in zip(words[::2], words[1::2], strict=True)
    )


def _id(tokenizer: Tokenizer, word: str, count: int) -> int:
    spaced = tokenizer.id_of(" " + word)
    return spaced if spaced is not None and spaced < count else find_token(tokenizer, word, count)


def rows(model: Transformer, ids: Tensor) -> Tensor:
    """Rows of the embedding in fp64, [n, C]."""
    with torch.inference_mode():
        found: Tensor = model.embedding(ids.to(model.device))
        return found.double().cpu()


def table(model: Transformer, count: int) -> Iterator[tuple[slice, Tensor]]:
    """The first ``count`` rows, some at a time."""
    step = max(AT_ONCE // model.config.hidden_size, 1)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        yield part, rows(model, torch.arange(part.start, part.stop))


def _cosines(model: Transformer, count: int, vector: Tensor, mean: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each row with the vector, raw and centred."""
    for _, part in table(model, count):
        yield cosine(part, vector), cosine(part - mean, vector - mean)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of rows a [n, C] with b [C]; 0 where one has no length."""
    return torch.nan_to_num(a @ b / (a.norm(dim=-1) * b.norm()))


def _claim(model: Transformer, count: int, vector: Tensor, order: Tensor, shown: Tensor) -> Claim:
    """The rows shown, one by one: with the mean taken anew, in the other order, and angles by the law of cosines."""
    mean, seen = torch.zeros_like(vector), 0
    for part, block in reversed(list(table(model, count))):
        seen += part.stop - part.start
        mean += (block - mean).sum(dim=0) / seen
    errors = [0.0]
    for place, id in enumerate(order):
        row = rows(model, id.view(1))[0]
        for cosine_shown, a, b in ((shown[0, place], row, vector), (shown[1, place], row - mean, vector - mean)):
            sides = a.square().sum() + b.square().sum() - (a - b).square().sum()
            lengths = 2 * a.norm() * b.norm()
            errors.append(float((sides / lengths - cosine_shown).abs()) if lengths > 0 else float(cosine_shown.abs()))
    return Claim("each cosine is that of the triangle's sides", max(errors), CLOSE)
