"""The filters that do not depend on numbers of the user: ids without a token, the shortest length, biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmcli.errors import LlmcliError, usage_error
from llmcli.generation.filters.base import CUT, MAX_CHANGE, as_index

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Cut the ids that no token has: some models pad their embedding beyond the tokenizer's size, ``value``."""

    value: float
    name: str = "vocabulary"

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        logits = logits.clone()
        logits[int(self.value) :] = CUT
        return logits


@dataclass(frozen=True)
class MinNewTokens:
    """Cut the tokens that end a text while it has fewer than ``value`` tokens, unless no other token is left.

    ``prompt`` and ``ends`` belong to one text: ``after`` sets them, and without them nothing is cut. A context that no
    longer begins with the prompt has dropped its older half, so its text is long enough.
    """

    value: float
    prompt: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    name: str = "min-new-tokens"

    def after(self, prompt: Sequence[int], ends: Iterable[int]) -> MinNewTokens:
        """The same filter for a text that begins after ``prompt`` and ends with one of ``ends``."""
        return replace(self, prompt=tuple(prompt), ends=tuple(ends))

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        start, ends = len(self.prompt), [id for id in self.ends if id < len(logits)]
        if not ends or len(ids) - start >= self.value or tuple(ids[:start]) != self.prompt:
            return logits
        cut = logits.index_fill(0, as_index(ends, logits), CUT)
        return cut if bool(cut.max() > CUT) else logits


@dataclass(frozen=True)
class LogitBias:
    """Add ``bias`` to the logits of chosen token ids; -inf bans a token.

    Raises LlmcliError if an amount is too large, or if the bias bans every token that is left.
    """

    bias: Mapping[int, float]
    value: None = None
    name: str = "logit-bias"

    def __post_init__(self) -> None:
        for amount in self.bias.values():
            if amount != CUT and not abs(amount) <= MAX_CHANGE:
                raise usage_error(f"logit-bias must be from {-MAX_CHANGE:g} to {MAX_CHANGE:g}, or -inf, not {amount:g}")

    def __call__(self, logits: Tensor, ids: Sequence[int] = ()) -> Tensor:
        biased = logits.index_add(0, as_index(self.bias, logits), logits.new_tensor(list(self.bias.values())))
        if not bool(biased.max().isfinite()):
            raise LlmcliError("the logit bias bans every possible token", kind="logit-bias-bans-all")
        return biased
