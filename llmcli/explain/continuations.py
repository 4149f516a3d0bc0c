"""The view of other choices: how would the text have gone on, had another token been taken?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import check_length, tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.generation.distribution import leading, probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.steps import forget_stale, next_logits
from llmcli.model.positions import planned_length

MOST_NODES = 1000
MOST_DEPTH = 100
BEFORE = 64  # tokens of the text with which a path is decoded: it may begin within a character
ROUNDING = 1e-4  # a softmax in fp32 of 260,000 numbers is up to 1e-5 off
LEAST = 1e-30  # fp32 has few digits for smaller p

End = Literal["stop_token", "context"]


@dataclass(frozen=True)
class Node:
    """One token behind ``path`` (ids, its own the last): ``p`` given what is before it, ``logprob`` of the whole path.

    Both are the model's own, the second in nats. ``text`` is what the path adds. ``others`` is the probability
    that the ``children`` do not cover; None where there are none. ``end`` says why nothing can follow.
    """

    path: tuple[int, ...]
    piece: VocabEntry
    p: float
    logprob: float
    text: str
    end: End | None
    others: float | None
    children: tuple[Node, ...]


@dataclass(frozen=True)
class BranchReport(Report):
    """The tree behind ``position``; ``best`` is its most probable path of all that are of full length or ended."""

    model: str
    position: int
    at: VocabEntry
    others: float
    children: tuple[Node, ...]
    best: Node
    check: Check


def branch_report(loaded: LoadedModel, ids: Sequence[int], position: int, *, width: int, depth: int) -> BranchReport:
    """The ``width`` most probable tokens behind ``position``, behind each of them again, ``depth`` times.

    Errors: a tree of more than ``MOST_NODES`` or deeper than ``MOST_DEPTH``, a text longer than the context.
    """
    check_size(width, depth)
    check_length(loaded.model, position + 1)
    tree = Tree(loaded, ids[: position + 1], width, depth)
    others, children = tree.grow((), 0.0)
    leaves = [node for node in nodes_of(children) if not node.children]
    return BranchReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(loaded.tokenizer, ids[position]),
        others=others,
        children=children,
        best=max(leaves, key=lambda leaf: leaf.logprob),
        check=check(tree.fresh_claim(), _sums_claim(others, children), _product_claim(children)),
    )


def check_size(width: int, depth: int) -> None:
    """Raise unless a tree of ``depth`` with ``width`` children at each node is small enough to look at."""
    if depth > MOST_DEPTH:
        raise usage_error(f"a tree of depth {depth} is deeper than {MOST_DEPTH}", "make it shorter")
    if sum(width**level for level in range(1, depth + 1)) > MOST_NODES:
        raise usage_error(
            f"a tree of width {width} and depth {depth} has more than {MOST_NODES} nodes", "make it narrower or shorter"
        )


class Tree:
    """Grows depth first over one KV cache: what two branches share is read once, the rest taken back in between."""

    def __init__(self, loaded: LoadedModel, ids: Sequence[int], width: int, depth: int) -> None:
        self.loaded, self.ids, self.width, self.depth = loaded, list(ids), width, depth
        self.size = min(loaded.tokenizer.size, loaded.model.config.vocab_size)
        self.cache = loaded.model.new_cache()
        total = min(len(ids) + depth, loaded.model.config.max_position_embeddings)
        self.planned = planned_length(loaded.model.config.rope, len(ids), total)
        # Paths read, with the logits behind them: that to which the best leaf yet belongs, and the last.
        self.read: dict[Literal["best", "last"], tuple[tuple[int, ...], Tensor]] = {}
        self.best = -math.inf

    def grow(self, path: tuple[int, ...], logprob: float) -> tuple[float, tuple[Node, ...]]:
        """What may follow ``path``, whose log-probability is given: the part not shown, and the nodes."""
        others, found = self._look(path, logprob)
        return others, tuple(self._node((*path, id), p, total) for id, p, total in found)

    def _look(self, path: tuple[int, ...], logprob: float) -> tuple[float, list[tuple[int, float, float]]]:
        """The part not shown, and (id, p, log-probability of its path) of each child, the most probable first."""
        logits = self._logits(path)
        probs = probabilities(logits)
        ids = leading(probs[: self.size], self.width)
        totals = [logprob + part for part in logits.double().log_softmax(dim=-1)[ids].tolist()]
        found = list(zip(ids.tolist(), probs[ids].tolist(), totals, strict=True))
        leaves = [total for id, _, total in found if self._ends((*path, id))]
        if leaves and max(leaves) > self.best:
            self.best = max(leaves)
            self.read["best"] = path, logits
        self.read["last"] = path, logits
        return float(probs.double().index_fill(0, ids, 0.0).sum()), found

    def _node(self, path: tuple[int, ...], p: float, logprob: float) -> Node:
        others, children = (None, ()) if self._ends(path) else self.grow(path, logprob)
        return Node(
            path=path,
            piece=vocab_entry(self.loaded.tokenizer, path[-1]),
            p=p,
            logprob=logprob,
            text=self._text(path),
            end=self._end(path),
            others=others,
            children=children,
        )

    def _text(self, path: tuple[int, ...]) -> str:
        """What ``path`` adds to the text, with a character that it completes."""
        ids, decode = self.ids[-BEFORE:], self.loaded.tokenizer.decode
        before, whole = decode(ids), decode([*ids, *path])
        same = (n for n, (old, new) in enumerate(zip(before, whole, strict=False)) if old != new)
        return whole[next(same, len(before)) :]

    def _end(self, path: tuple[int, ...]) -> End | None:
        if path[-1] in self.loaded.stop_ids:
            return "stop_token"
        full = len(self.ids) + len(path) > self.loaded.model.config.max_position_embeddings
        return "context" if full else None

    def _ends(self, path: tuple[int, ...]) -> bool:
        """Whether nothing behind ``path`` is shown."""
        return len(path) == self.depth or self._end(path) is not None

    def _logits(self, path: tuple[int, ...]) -> Tensor:
        """What follows the text and ``path``."""
        model, cache, text = self.loaded.model, self.cache, [*self.ids, *path]
        cache.truncate(min(cache.length, len(text) - 1))  # the last branch's own tokens
        cache.planned = self.planned  # not the length of a longer branch
        forget_stale(model, len(text), cache)
        return next_logits(model, text[cache.length :], cache)

    def fresh_claim(self) -> Claim:
        """Both paths kept, read anew from the beginning."""
        model, errors = self.loaded.model, list[float]()
        for path, logits in dict(self.read.values()).items():  # once, where they are the same
            cache = model.new_cache()
            cache.planned = self.planned
            fresh = next_logits(model, [*self.ids, *path], cache)
            errors.append(relative_error(float((fresh - logits).abs().max()), float(fresh.abs().max())))
        return Claim("the best path and the last are as if read from the beginning", max(errors), tolerance(model))


def nodes_of(children: Sequence[Node]) -> Iterator[Node]:
    """All nodes of a tree, each before those behind it."""
    for child in children:
        yield child
        yield from nodes_of(child.children)


def _sums_claim(others: float, children: Sequence[Node]) -> Claim:
    """The rest was added up by itself, not taken from 1."""
    errors = [abs(sum(child.p for child in children) + others - 1)]
    for node in nodes_of(children):
        if node.others is not None:
            errors.append(abs(sum(child.p for child in node.children) + node.others - 1))
    return Claim("at each place p and the other tokens' add up to 1", max(errors), ROUNDING)


def _product_claim(children: Sequence[Node]) -> Claim:
    """From each node to the next the path's logprob grows by ln p; told in shares of p."""
    errors: list[float] = []
    along: dict[tuple[int, ...], float] = {(): 0.0}
    for node in nodes_of(children):
        along[node.path] = node.logprob
        expected = math.exp(node.logprob - along[node.path[:-1]])
        errors.append(abs(expected - node.p) / max(node.p, LEAST))
    return Claim("each path's p is the product of its tokens'", max(errors), ROUNDING)
