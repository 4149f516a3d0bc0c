"""A tree of continuations: how the text could continue if another token were chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llmcli.errors import usage_error
from llmcli.explain.forward_pass import check_length, tolerance
from llmcli.explain.report import Check, Claim, Report, VocabEntry, check, relative_error, vocab_entry
from llmcli.explain.selection import Text, check_whole, find_position, token_ids
from llmcli.generation.distribution import leading, probabilities
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import clear_if_stale, next_logits
from llmcli.model.positions import planned_length

MAX_NODES = 1000
MAX_DEPTH = 100
DECODED = 64  # tokens of the text that a path is decoded with: its first token may complete a character
PROBABILITY_TOLERANCE = 1e-4  # an fp32 softmax over 260,000 numbers is off by up to 1e-5
SMALLEST_P = 1e-30  # below this, fp32 has too few digits to compare

End = Literal["stop_token", "context"]


@dataclass(frozen=True)
class Node:
    """One token of the tree, the last of ``path`` (ids): ``p`` given the tokens before it, ``logprob`` of the path.

    Both are the model's own; ``logprob`` is in nats. ``text`` is what the path adds to the text. ``others`` is the
    total probability of the tokens that are not among ``children``, None for a leaf. ``end`` says why no token can
    follow, if none can.
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
    """The tree after ``position``; ``best`` is the most probable leaf, which has the full depth or ended before."""

    model: str
    position: int
    at: VocabEntry
    others: float
    children: tuple[Node, ...]
    best: Node
    check: Check


def branch(
    loaded: LoadedModel,
    text: Text,
    *,
    position: int | str = -1,
    width: int = 3,
    depth: int = 3,
    parse_special: bool = False,
) -> BranchReport:
    """Return the tree of the ``width`` most probable tokens after ``position`` and after each other, ``depth`` deep.

    Raises LlmcliError if the tree has more than MAX_NODES nodes or is deeper than MAX_DEPTH, the text is empty or
    longer than the context, or the position does not exist.
    """
    check_tree_size(width, depth)
    ids = token_ids(loaded, text, parse_special=parse_special)
    position = find_position(loaded.tokenizer, ids, position)
    check_length(loaded.model, position + 1)
    tree = Tree(loaded, ids[: position + 1], width, depth)
    others, children = tree.grow((), 0.0)
    leaves = [node for node in all_nodes(children) if not node.children]
    return BranchReport(
        model=loaded.name,
        position=position,
        at=vocab_entry(loaded.tokenizer, ids[position]),
        others=others,
        children=children,
        best=max(leaves, key=lambda leaf: leaf.logprob),
        check=check(tree.fresh_claim(), _sum_claim(others, children), _product_claim(children)),
    )


def check_tree_size(width: int, depth: int) -> None:
    """Raise LlmcliError unless a tree of this ``width`` and ``depth`` is small enough to look at."""
    check_whole("width", width, 1)
    check_whole("depth", depth, 1)
    if depth > MAX_DEPTH:
        raise usage_error(f"depth must be at most {MAX_DEPTH}, not {depth}")
    if sum(width**level for level in range(1, depth + 1)) > MAX_NODES:
        raise usage_error(
            f"a tree of width {width} and depth {depth} has more than {MAX_NODES} nodes",
            "make it narrower or less deep",
        )


class Tree:
    """Grows depth first over one KV cache: tokens that two branches share are read once, the others are truncated."""

    def __init__(self, loaded: LoadedModel, ids: Sequence[int], width: int, depth: int) -> None:
        self.loaded, self.ids, self.width, self.depth = loaded, list(ids), width, depth
        self.vocab_size = min(loaded.tokenizer.size, loaded.model.config.vocab_size)
        self.cache = loaded.model.new_cache()
        total = min(len(ids) + depth, loaded.model.config.max_position_embeddings)
        self.planned = planned_length(loaded.model.config.rope, len(ids), total)
        # For the check: the path before the best leaf so far and the path read last, each with the logits after it.
        self.kept: dict[Literal["best", "last"], tuple[tuple[int, ...], Tensor]] = {}
        self.best = -math.inf

    def grow(self, path: tuple[int, ...], logprob: float) -> tuple[float, tuple[Node, ...]]:
        """Return what may follow ``path``, whose own logprob is given: the rest's probability, and the nodes."""
        others, found = self._children(path, logprob)
        return others, tuple(self._node((*path, id), p, total) for id, p, total in found)

    def _children(self, path: tuple[int, ...], logprob: float) -> tuple[float, list[tuple[int, float, float]]]:
        """The rest's probability, and (id, p, logprob of its path) of each child, the most probable first."""
        logits = self._logits(path)
        probs = probabilities(logits)
        ids = leading(probs[: self.vocab_size], self.width)
        totals = [logprob + own for own in logits.double().log_softmax(dim=-1)[ids].tolist()]
        found = list(zip(ids.tolist(), probs[ids].tolist(), totals, strict=True))
        leaves = [total for id, _, total in found if self._is_leaf((*path, id))]
        if leaves and max(leaves) > self.best:
            self.best = max(leaves)
            self.kept["best"] = path, logits
        self.kept["last"] = path, logits
        return float(probs.double().index_fill(0, ids, 0.0).sum()), found

    def _node(self, path: tuple[int, ...], p: float, logprob: float) -> Node:
        others, children = (None, ()) if self._is_leaf(path) else self.grow(path, logprob)
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
        """What ``path`` adds to the text, including a character that it completes."""
        ids, decode = self.ids[-DECODED:], self.loaded.tokenizer.decode
        before, whole = decode(ids), decode([*ids, *path])
        changed = (n for n, (old, new) in enumerate(zip(before, whole, strict=False)) if old != new)
        return whole[next(changed, len(before)) :]

    def _end(self, path: tuple[int, ...]) -> End | None:
        if path[-1] in self.loaded.stop_ids:
            return "stop_token"
        full = len(self.ids) + len(path) > self.loaded.model.config.max_position_embeddings
        return "context" if full else None

    def _is_leaf(self, path: tuple[int, ...]) -> bool:
        return len(path) == self.depth or self._end(path) is not None

    def _logits(self, path: tuple[int, ...]) -> Tensor:
        """The logits [V] after the text and ``path``."""
        model, cache, ids = self.loaded.model, self.cache, [*self.ids, *path]
        cache.truncate(min(cache.length, len(ids) - 1))  # removes the last branch's own tokens
        cache.planned = self.planned  # not the length of a longer branch
        clear_if_stale(model, len(ids), cache)
        return next_logits(model, ids[cache.length :], cache)

    def fresh_claim(self) -> Claim:
        """Claim that both kept paths, read again into an empty cache, give the same logits."""
        model, errors = self.loaded.model, list[float]()
        for path, logits in dict(self.kept.values()).items():  # once, if both are the same path
            cache = model.new_cache()
            cache.planned = self.planned
            fresh = next_logits(model, [*self.ids, *path], cache)
            errors.append(relative_error(float((fresh - logits).abs().max()), float(fresh.abs().max())))
        return Claim("the best path and the last give the logits of a fresh prefill", max(errors), tolerance(model))


def all_nodes(children: Sequence[Node]) -> Iterator[Node]:
    """Iterate over all nodes of a tree, each before the ones below it."""
    for child in children:
        yield child
        yield from all_nodes(child.children)


def _sum_claim(others: float, children: Sequence[Node]) -> Claim:
    """Claim that probabilities sum to 1; ``others`` was added up from its own tokens, not subtracted from 1."""
    errors = [abs(sum(child.p for child in children) + others - 1)]
    for node in all_nodes(children):
        if node.others is not None:
            errors.append(abs(sum(child.p for child in node.children) + node.others - 1))
    return Claim("after each path all probabilities sum to 1", max(errors), PROBABILITY_TOLERANCE)


def _product_claim(children: Sequence[Node]) -> Claim:
    """Claim that from each node to the next the path's logprob grows by ln p; the error is relative to p."""
    errors: list[float] = []
    logprobs: dict[tuple[int, ...], float] = {(): 0.0}
    for node in all_nodes(children):
        logprobs[node.path] = node.logprob
        expected = math.exp(node.logprob - logprobs[node.path[:-1]])
        errors.append(abs(expected - node.p) / max(node.p, SMALLEST_P))
    return Claim("each path's probability is the product of its tokens'", max(errors), PROBABILITY_TOLERANCE)
