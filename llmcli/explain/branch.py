"""The view of other choices: how would the text have gone on, had another token been taken?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.check import Check, Claim, check, relative
from llmcli.explain.limits import limit
from llmcli.explain.piece import Piece, piece
from llmcli.explain.reading import check_length
from llmcli.generate.loaded import LoadedModel
from llmcli.generate.sampling import leading, probabilities
from llmcli.generate.steps import forget_stale, next_logits
from llmcli.model.rope import planned

MOST_NODES = 1000

End = Literal["stop_token", "context"]


@dataclass(frozen=True)
class Node:
    """One token behind ``path`` (ids, its own the last): ``p`` given what is before it, ``logprob`` of the whole path.

    Both are the model's own, the second in nats. ``text`` is what the path adds. ``others`` is the probability
    that the ``children`` do not cover; None where there are none. ``end`` says why nothing can follow.
    """

    path: tuple[int, ...]
    piece: Piece
    p: float
    logprob: float
    text: str
    end: End | None
    others: float | None
    children: tuple[Node, ...]


@dataclass(frozen=True)
class BranchReport:
    """The tree behind ``position``; ``best`` is its most probable path of all that are of full length or ended."""

    model: str
    position: int
    at: Piece
    others: float
    children: tuple[Node, ...]
    best: Node
    check: Check


def branch_report(loaded: LoadedModel, ids: Sequence[int], position: int, *, width: int, depth: int) -> BranchReport:
    """The ``width`` most probable tokens behind ``position``, behind each of them again, ``depth`` times.

    Errors: a tree of more than ``MOST_NODES``, a text that fills the context.
    """
    if sum(width**level for level in range(1, depth + 1)) > MOST_NODES:
        raise usage_error(
            f"a tree of width {width} and depth {depth} has more than {MOST_NODES} nodes", "make it narrower or shorter"
        )
    check_length(loaded.model, position + 1)
    tree = Tree(loaded, ids[: position + 1], width, depth)
    others, children = tree.grow((), 0.0)
    leaves = [leaf for child in children for leaf in leaves_of(child)]
    return BranchReport(
        model=loaded.name,
        position=position,
        at=piece(loaded.tokenizer, ids[position]),
        others=others,
        children=children,
        best=max(leaves, key=lambda leaf: leaf.logprob),
        check=check(tree.fresh_claim(), _sums_claim(others, children)),
    )


class Tree:
    """Grows depth first over one KV cache: what two branches share is read once, the rest taken back in between."""

    def __init__(self, loaded: LoadedModel, ids: Sequence[int], width: int, depth: int) -> None:
        self.loaded, self.ids, self.width, self.depth = loaded, list(ids), width, depth
        self.size = min(loaded.tokenizer.size, loaded.model.config.vocab_size)
        self.cache = loaded.model.new_cache()
        total = min(len(ids) + depth, loaded.model.config.max_position_embeddings)
        self.cache.planned = self.planned = planned(loaded.model.config.rope, len(ids), total)
        self.read: dict[int, tuple[tuple[int, ...], Tensor]] = {}  # the logits behind the first and the last branch

    def grow(self, path: tuple[int, ...], logprob: float) -> tuple[float, tuple[Node, ...]]:
        """What may follow ``path``, whose log-probability is given: the part not shown, and the nodes."""
        logits = self._logits(path)
        if len(path) == self.depth - 1:
            self.read.setdefault(0, (path, logits))
            self.read[1] = path, logits
        probs = probabilities(logits)
        logprobs = logits.log_softmax(dim=-1)
        best = leading(probs[: self.size], self.width)[: self.width].tolist()
        nodes = tuple(self._node((*path, id), float(probs[id]), logprob + float(logprobs[id])) for id in best)
        return max(1 - float(probs[best].double().sum()), 0.0), nodes

    def _node(self, path: tuple[int, ...], p: float, logprob: float) -> Node:
        tokenizer, end = self.loaded.tokenizer, self._end(path)
        others, children = (None, ()) if end or len(path) == self.depth else self.grow(path, logprob)
        before = tokenizer.decode(self.ids)
        return Node(
            path=path,
            piece=piece(tokenizer, path[-1]),
            p=p,
            logprob=logprob,
            text=tokenizer.decode([*self.ids, *path]).removeprefix(before),
            end=end,
            others=others,
            children=children,
        )

    def _end(self, path: tuple[int, ...]) -> End | None:
        if path[-1] in self.loaded.stop_ids:
            return "stop_token"
        full = len(self.ids) + len(path) > self.loaded.model.config.max_position_embeddings
        return "context" if full else None

    def _logits(self, path: tuple[int, ...]) -> Tensor:
        """What follows the text and ``path``."""
        model, cache, text = self.loaded.model, self.cache, [*self.ids, *path]
        cache.truncate(min(cache.length, len(text) - 1))  # the last branch's own tokens
        cache.planned = self.planned  # not the length of a longer branch
        forget_stale(model, len(text), cache)
        return next_logits(model, text[cache.length :], cache)

    def fresh_claim(self) -> Claim:
        """Both branches kept, read anew from the beginning."""
        model, errors = self.loaded.model, [0.0]
        for path, logits in self.read.values():
            cache = model.new_cache()
            cache.planned = self.planned
            fresh = next_logits(model, [*self.ids, *path], cache)
            errors.append(relative(float((fresh - logits).abs().max()), float(fresh.abs().max())))
        return Claim("first and last branch are as if read from the beginning", max(errors), limit(model))


def leaves_of(node: Node) -> list[Node]:
    """The ends of all paths through a node."""
    return [leaf for child in node.children for leaf in leaves_of(child)] or [node]


def _sums_claim(others: float, children: Sequence[Node]) -> Claim:
    """Multiplied along it, p is the exponential of each path's logprob; and siblings and others make 1."""
    errors = [abs(sum(child.p for child in children) + others - 1)]

    def walk(node: Node, product: float) -> None:
        errors.append(abs(product * node.p - math.exp(node.logprob)))
        if node.others is not None:
            errors.append(abs(sum(child.p for child in node.children) + node.others - 1))
        for child in node.children:
            walk(child, product * node.p)

    for child in children:
        walk(child, 1.0)
    return Claim("every path's p is the product of its tokens'", max(errors), 1e-5)
