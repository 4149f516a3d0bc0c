"""The probability of each of several answers to a prompt: a prefix tree of their tokens, read in one batch.

A prompt is read once, and so is a beginning that it shares with the prompt before it, such as examples. From there the
texts fork: where answers begin with the same tokens, these are read once, and all branches of the tree, of one prompt
or of many, take their next tokens in the same forward pass.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llmcli.engine.batch import batch_cache
from llmcli.errors import usage_error
from llmcli.generation.choice_texts import DELIMITER, check_choices, joined
from llmcli.generation.context import check_text
from llmcli.generation.distribution import check_finite
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import clear_if_stale, common_prefix, next_logits
from llmcli.model.cache import KVCache
from llmcli.model.transformer import Transformer
from llmcli.text.chat_format import ChatFormat, RenderedChat
from llmcli.text.chat_template import Message

BATCH_SIZE = 16  # branches read in parallel
SHARED = 32  # tokens that two prompts must share to make copying a cache cheaper than reading them again


@dataclass(frozen=True)
class Question:
    """A prompt and its choices as tokens: each text is ``context`` and one of ``choices``.

    ``moved`` are the prompt's last tokens that are not in ``context``, because they merge with a choice. ``texts`` are
    the choices as they follow the prompt.
    """

    key: int
    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    moved: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """The number of tokens of the longest text."""
        return len(self.context) + max(map(len, self.choices))


@dataclass(frozen=True)
class Scored:
    """The natural log probability of each token of each choice.

    With the end of the text counted, it has one more number at its end. ``outside`` is the probability that the text
    continues with none of the choices, added up from its own tokens. ``other`` is the most probable token that begins
    none of them, with its probability.
    """

    question: Question
    logprobs: tuple[tuple[float, ...], ...]
    outside: float
    other: tuple[int, float]

    @property
    def totals(self) -> list[float]:
        """The log probability of each choice."""
        return [math.fsum(each) for each in self.logprobs]

    @property
    def means(self) -> list[float]:
        """The log probability of each choice per token, which does not punish long ones."""
        return [math.fsum(each) / len(each) for each in self.logprobs]


def shares_of(logprobs: Sequence[float]) -> list[float]:
    """Return the softmax of log probabilities: what each is against the others."""
    powers = [math.exp(each - max(logprobs)) for each in logprobs]
    return [power / math.fsum(powers) for power in powers]


def ask(
    loaded: LoadedModel,
    prompt: str | Sequence[Message],
    choices: Sequence[str],
    *,
    key: int = 0,
    delimiter: str | None = None,
    form: ChatFormat | None = None,
    parse_special: bool = False,
) -> Question:
    """Return the tokens of a prompt and its choices.

    Messages are a chat in ``form``, and a choice is the beginning of the reply. ``delimiter``, by default a space and
    in a chat nothing, separates a choice from a prompt that does not end with a space or line break.

    Raises the errors of ``check_choices``, and LlmcliError if a choice adds no token, two are the same tokens, or a
    text does not fit the context.
    """
    check_choices(choices)
    limit = loaded.model.config.max_position_embeddings
    if isinstance(prompt, str):
        before = prompt
        delimiter = DELIMITER if delimiter is None else delimiter

        def encode(text: str) -> list[int]:
            return loaded.tokenizer.encode(before + text, parse_special=parse_special)
    else:
        if form is None:
            raise TypeError("messages need a chat format")
        chat, write = form.render(prompt), form.encode
        before = chat.text

        def encode(text: str) -> list[int]:
            return write(RenderedChat(before + text, chat.control_spans, needs_marks=True))

    check_text(before, loaded.tokenizer.encode, limit, "the prompt", "question-beyond-context")
    question = _tokens(loaded, encode, [joined(before, choice, delimiter or "") for choice in choices], key)
    _check_tokens(question, choices)
    if question.length > limit:
        raise usage_error(
            f"the prompt and a choice have {question.length} tokens, but the model's context holds {limit}",
            "shorten the prompt",
        )
    return question


def _tokens(loaded: LoadedModel, encode: Callable[[str], list[int]], texts: Sequence[str], key: int) -> Question:
    """The tokens of a prompt and the ``texts`` that may follow; ``encode`` returns the ids of the prompt and a text.

    The prompt and a text are encoded together, as when a model reads it: the last tokens of a prompt may merge with
    what follows. The context consists of the tokens that the prompt and all texts share.
    """
    prompt, wholes = encode(""), [encode(text) for text in texts]
    shared = min(common_prefix(prompt, whole) for whole in wholes)
    context = loaded.readable(prompt[:shared])
    if not context:
        raise usage_error("the prompt is empty, and the model has no BOS token to start from", "give a prompt")
    choices = tuple(tuple(whole[shared:]) for whole in wholes)
    return Question(key, tuple(context), choices, tuple(prompt[shared:]), tuple(texts))


def _check_tokens(question: Question, choices: Sequence[str]) -> None:
    """Raise LlmcliError unless each choice has tokens of its own."""
    known: dict[tuple[int, ...], str] = {}
    for ids, choice in zip(question.choices, choices, strict=True):
        if not ids:
            raise usage_error(f"the choice {choice!r} adds no token to the prompt", "give another one")
        if ids in known:
            raise usage_error(f"the choices {known[ids]!r} and {choice!r} are the same tokens", "omit one of them")
        known[ids] = choice


def score_choices(
    loaded: LoadedModel, questions: Iterable[Question], size: int = BATCH_SIZE, *, end: bool = False
) -> Iterator[Scored]:
    """Yield each question's scores as soon as they are known, reading up to ``size`` branches in parallel.

    With ``end``, a choice counts only if the text ends after it: with one of the model's stop tokens.
    Raises LlmcliError if the model has none, or if its logits are not finite.
    """
    stops = sorted(loaded.stop_ids) if end else []
    if end and not stops:
        raise usage_error("the model has no stop token that ends a text", "count the choices without their end")
    batch, prompts, waiting = _Batch(loaded.model, size), _Prompts(loaded.model), iter(questions)
    while True:
        while batch.has_room:
            question = next(waiting, None)
            if question is None:
                break
            tree = _Tree(question, stops, *prompts.read(question))
            batch.add(tree)
            if tree.done:
                yield tree.result()
        if batch.is_empty:
            return
        yield from (tree.result() for tree in batch.advance())


class _Prompts:
    """Reads prompts. One that begins as the one before it does goes on with a copy of its cache."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._last: tuple[tuple[int, ...], KVCache] = (), model.new_cache()

    def read(self, question: Question) -> tuple[KVCache, Tensor]:
        """Return a cache that holds the question's context, and the logits after it [V]."""
        model, context = self._model, question.context
        before, cache = self._last
        shared = min(common_prefix(before, context), len(context) - 1)
        if shared >= SHARED:
            cache = cache.copy()
            cache.truncate(shared)
        else:
            cache = model.new_cache()
        # The angles of all texts are those of the longest, so that they share the prompt's keys.
        cache.planned = question.length
        clear_if_stale(model, len(context), cache)
        logits = next_logits(model, context[cache.length :], cache)
        self._last = context, cache
        return cache, logits


@dataclass
class _Node:
    """A token of the tree, or its root. ``choice`` is the choice that ends here, if one does.

    ``logprob`` is the token's own. ``others`` is the probability of all that leaves the tree after it, and ``ending``
    the log probability that the text ends after it; both are None where no token is predicted.
    """

    token: int
    path: tuple[int, ...]
    children: dict[int, _Node] = field(default_factory=dict)
    choice: int | None = None
    logprob: float = 0.0
    others: float | None = None
    ending: float | None = None


class _Tree:
    """The prefix tree of a question's choices. ``cache`` holds the prompt, which ``logits`` [V] follow."""

    def __init__(self, question: Question, stops: Sequence[int], cache: KVCache, logits: Tensor) -> None:
        self.question, self.stops, self.cache = question, list(stops), cache
        self.root = _Node(-1, ())
        for number, ids in enumerate(question.choices):
            node = self.root
            for id in ids:
                node = node.children.setdefault(id, _Node(id, (*node.path, id)))
            node.choice = number
        # Nodes after which a token is still to be predicted.
        self.unread = sum(self.predicts(node) for node in _all_nodes(self.root))
        self.other = (-1, 0.0)
        self.note(self.root, logits)

    @property
    def done(self) -> bool:
        return self.unread == 0

    def predicts(self, node: _Node) -> bool:
        """Whether what follows a node counts."""
        return bool(node.children) or (bool(self.stops) and node.choice is not None)

    def following(self, node: _Node) -> list[_Node]:
        """The children of a node that must be read."""
        return [child for child in node.children.values() if self.predicts(child)]

    def note(self, node: _Node, logits: Tensor) -> None:
        """Store what the logits [V] after a node say about its children, the end of the text, and all other tokens."""
        if node.others is not None:  # it was read again on the way to a branch
            return
        check_finite(logits)
        wide = logits.double()
        wide = wide - wide.logsumexp(dim=-1)
        inside = list(node.children)
        for id, value in zip(inside, wide[inside].tolist(), strict=True):
            node.children[id].logprob = value
        if self.stops and node.choice is not None:
            node.ending = float(wide[self.stops].logsumexp(dim=-1))
            inside += self.stops
        wide[inside] = -math.inf
        node.others = float(wide.logsumexp(dim=-1).exp())
        if node is self.root:
            best = wide.max(dim=-1)
            self.other = int(best.indices), float(best.values.exp())
        self.unread -= 1

    def result(self) -> Scored:
        """The scores, once all nodes are read."""
        logprobs = []
        for ids in self.question.choices:
            node, own = self.root, list[float]()
            for id in ids:
                node = node.children[id]
                own.append(node.logprob)
            logprobs.append((*own, *(() if node.ending is None else (node.ending,))))
        return Scored(self.question, tuple(logprobs), self._outside(), self.other)

    def _outside(self) -> float:
        """The probability of everything that is no choice."""
        total, waiting = [0.0], [(self.root, 0.0)]
        while waiting:
            node, logprob = waiting.pop()
            if node.choice is not None and not self.stops:  # whatever follows a choice belongs to it
                continue
            assert node.others is not None
            total.append(math.exp(logprob) * node.others)
            waiting += [(child, logprob + child.logprob) for child in node.children.values()]
        return math.fsum(total)


def _all_nodes(root: _Node) -> Iterator[_Node]:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()


@dataclass
class _Branch:
    """A text in the batch: the nodes that it reads next, the last of which is new."""

    tree: _Tree
    nodes: deque[_Node]


class _Batch:
    """The branches of several trees that are read in parallel."""

    def __init__(self, model: Transformer, size: int) -> None:
        self._size, self._cache = size, batch_cache(model)
        self._rows: list[_Branch] = []
        self._waiting = deque[_Branch]()  # without room so far

    @property
    def has_room(self) -> bool:
        return len(self._rows) + len(self._waiting) < self._size

    @property
    def is_empty(self) -> bool:
        return not self._rows and not self._waiting

    def add(self, tree: _Tree) -> None:
        """Add the branches that leave a tree's root."""
        self._waiting.extend(_Branch(tree, deque([node])) for node in tree.following(tree.root))

    def advance(self) -> list[_Tree]:
        """Read one token of each branch. Returns the trees that are done."""
        while self._waiting and len(self._rows) < self._size:
            branch = self._waiting.popleft()
            self._cache.add(branch.tree.cache)
            self._rows.append(branch)
        logits = self._cache.step([row.nodes[0].token for row in self._rows])
        done = []
        for number in reversed(range(len(self._rows))):
            row = self._rows[number]
            node = row.nodes.popleft()
            row.tree.note(node, logits[number])
            if not row.nodes:
                self._continue(number, node)
            if row.tree.done and row.tree not in done:
                done.append(row.tree)
        return done[::-1]

    def _continue(self, number: int, node: _Node) -> None:
        """Let a row go on with what follows ``node``: its first child in the same row, the others in new ones."""
        row = self._rows[number]
        following = row.tree.following(node)
        for child in following[1:]:
            if len(self._rows) < self._size:
                self._cache.fork(number)
                self._rows.append(_Branch(row.tree, deque([child])))
            else:
                self._waiting.append(_Branch(row.tree, deque(_nodes_to(row.tree.root, child))))
        if following:
            row.nodes.append(following[0])
            return
        self._cache.remove(number)
        self._rows[number] = self._rows[-1]
        self._rows.pop()


def _nodes_to(root: _Node, node: _Node) -> Iterator[_Node]:
    """The nodes on the path from the root, without it, to ``node``."""
    for id in node.path:
        root = root.children[id]
        yield root
