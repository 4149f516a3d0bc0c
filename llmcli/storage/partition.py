"""How several ranks share a model: which rows or columns of each parameter one of them keeps.

Tensor parallelism (Shoeybi et al. 2019, Megatron-LM). A matrix that widens is split by rows, so that each rank
computes some heads or some features of the MLP; the one that narrows again by columns, so that the ranks' outputs
are summed. The embedding and the head are split by tokens. What is small is held by every rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmcli.errors import usage_error
from llmcli.model.config import ModelConfig


@dataclass(frozen=True)
class Cut:
    """What a rank keeps of a parameter: some rows, or a range of columns; None: all of them.

    ``once``: only the first rank holds it, the others have zeros in its place, for their outputs are summed.
    """

    rows: tuple[range, ...] | None = None
    columns: range | None = None
    once: bool = False


@dataclass(frozen=True)
class Share:
    """One rank's share of a model; ``rank`` counts from 0. Errors: more ranks than heads, which are not divided.

    Where the heads, features or tokens are no multiple of the ranks, some hold one more than others.
    """

    whole: ModelConfig
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        heads = self.whole.num_attention_heads
        if self.ranks > heads:
            raise usage_error(f"the model has {heads} attention heads, too few for {self.ranks} ranks", "use fewer")

    def piece(self, count: int) -> range:
        """This rank's part of ``count`` things."""
        return range(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)

    @property
    def heads(self) -> range:
        """The query heads, of all that there are."""
        return self.piece(self.whole.num_attention_heads)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """The key/value heads that ``heads`` look at; other ranks may hold some of them too.

        Each once, if they then serve equally many heads, as attention needs it; else one for each head.
        """
        group = self.whole.num_attention_heads // self.whole.num_key_value_heads
        seen = [head // group for head in self.heads]
        several = sorted(set(seen))
        even = len({seen.count(head) for head in several}) == 1
        return tuple(several if even else seen)

    @property
    def counted(self) -> tuple[bool, ...]:
        """Which of ``kv_heads`` this rank counts in a sum over all ranks, where each must count once."""
        group = self.whole.num_attention_heads // self.whole.num_key_value_heads
        held = self.kv_heads
        return tuple(head * group in self.heads and head not in held[:place] for place, head in enumerate(held))

    @property
    def vocabulary(self) -> range:
        """The tokens whose rows of embedding and head it holds."""
        return self.piece(self.whole.vocab_size)

    def narrowed(self) -> ModelConfig:
        """The config of a transformer that computes only this share."""
        moe = self.whole.moe
        return replace(
            self.whole,
            vocab_size=len(self.vocabulary),
            num_attention_heads=len(self.heads),
            num_key_value_heads=len(self.kv_heads),
            intermediate_size=len(self.piece(self.whole.intermediate_size)),
            moe=moe and replace(moe, intermediate_size=len(self.piece(moe.intermediate_size))),
        )

    def cut(self, target: str) -> Cut:
        """What it keeps of a parameter of ``Transformer``."""
        name = re.sub(r"^blocks\.\d+\.|(?<=experts\.)\d+\.", "", target)
        return TABLE[name](self) if name in TABLE else Cut()

    def _head_rows(self, first: int, heads: tuple[int, ...] | range) -> tuple[range, ...]:
        """The rows of heads in a matrix that holds those of one kind from its head ``first`` on."""
        size = self.whole.head_dim
        return tuple(range((first + head) * size, (first + head + 1) * size) for head in heads)

    def qkv(self) -> Cut:
        """Queries, keys and values, stacked."""
        queries, keys = self.whole.num_attention_heads, self.whole.num_key_value_heads
        stacked = ((0, self.heads), (queries, self.kv_heads), (queries + keys, self.kv_heads))
        return Cut(rows=tuple(rows for first, heads in stacked for rows in self._head_rows(first, heads)))

    def head_norm(self, heads: tuple[int, ...] | range) -> Cut:
        """A norm's weight for each of the heads; one that all heads share is held by every rank."""
        return Cut() if self.whole.qk_norm == "head" else Cut(rows=self._head_rows(0, heads))

    def summed(self) -> Cut:
        """The columns that take the heads' outputs."""
        size = self.whole.head_dim
        return Cut(columns=range(self.heads.start * size, self.heads.stop * size))

    def wide(self, size: int) -> Cut:
        """Features of an MLP of so many, whose gate and up are stacked if it is gated."""
        piece = self.piece(size)
        starts = (0, size) if self.whole.gated_mlp else (0,)
        return Cut(rows=tuple(range(start + piece.start, start + piece.stop) for start in starts))

    @property
    def expert_size(self) -> int:
        return 0 if self.whole.moe is None else self.whole.moe.intermediate_size


TABLE: dict[str, Callable[[Share], Cut]] = {
    "embedding.weight": lambda share: Cut(rows=(share.vocabulary,)),
    "head.weight": lambda share: Cut(rows=(share.vocabulary,)),
    "attn.qkv.weight": Share.qkv,
    "attn.qkv.bias": Share.qkv,
    "attn.q_norm.weight": lambda share: share.head_norm(share.heads),
    "attn.k_norm.weight": lambda share: share.head_norm(share.kv_heads),
    "attn.out.weight": Share.summed,
    "attn.out.bias": lambda share: Cut(once=True),
    "mlp.up.weight": lambda share: share.wide(share.whole.intermediate_size),
    "mlp.up.bias": lambda share: share.wide(share.whole.intermediate_size),
    "mlp.down.weight": lambda share: Cut(columns=share.piece(share.whole.intermediate_size)),
    "mlp.down.bias": lambda share: Cut(once=True),
    "mlp.experts.up.weight": lambda share: share.wide(share.expert_size),
    "mlp.experts.up.bias": lambda share: share.wide(share.expert_size),
    "mlp.experts.down.weight": lambda share: Cut(columns=share.piece(share.expert_size)),
    "mlp.experts.down.bias": lambda share: Cut(once=True),
}
