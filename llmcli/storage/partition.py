"""A rank's part of a model: which rows or columns of each parameter it holds, and how it reads only those.

Tensor parallelism (Shoeybi et al. 2019, Megatron-LM). The first matrix of attention and of the MLP is split by rows,
so that each rank computes some heads or some features; the second is split by columns, and the ranks' outputs are
summed. The embedding and the head are split by tokens. Every rank holds all small parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from safetensors import safe_open
from torch import Tensor

from llmcli.errors import usage_error
from llmcli.model.config import ModelConfig, MoeConfig
from llmcli.model.families.rules import Rule, Source
from llmcli.storage.tensors import WeightFiles, dtype_for


@dataclass(frozen=True)
class ParameterSlice:
    """The part of a parameter that a rank holds: some rows or a range of columns; None means all.

    ``once``: only the first rank holds it. The other ranks have zeros instead, because the outputs are summed.
    """

    rows: tuple[range, ...] | None = None
    columns: range | None = None
    once: bool = False


@dataclass(frozen=True)
class Partition:
    """The part of the model ``whole`` that ``rank``, counted from 0, holds of ``ranks``.

    Heads are not divided. If the number of heads, features or tokens is not a multiple of the ranks, some ranks hold
    one more than others. Raises LlmcliError if there are more ranks than heads, or layers that are recurrent, have
    latent attention, differ in their heads, share keys and values, or have embeddings of their own.
    """

    whole: ModelConfig
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        heads = self.whole.num_attention_heads
        if self.whole.mixer is not None:
            raise usage_error("recurrent layers cannot be split among ranks", "use one process")
        if self.whole.latent is not None:
            raise usage_error("latent attention cannot be split among ranks", "use one process")
        whole = self.whole
        if whole.global_head_dim is not None or whole.num_kv_shared_layers or whole.hidden_size_per_layer_input:
            raise usage_error(
                "layers whose heads differ in size, that share keys and values, or that have embeddings of their own "
                "cannot be split among ranks",
                "use one process",
            )
        if self.ranks > heads:
            raise usage_error(f"the model has {heads} attention heads, too few for {self.ranks} ranks", "use fewer")

    def share_of(self, count: int) -> range:
        """This rank's part of ``count`` items."""
        return range(count * self.rank // self.ranks, count * (self.rank + 1) // self.ranks)

    @property
    def heads(self) -> range:
        """The query heads of this rank, by their numbers in the whole model."""
        return self.share_of(self.whole.num_attention_heads)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """The key/value heads that ``heads`` attend to; other ranks may hold some of them too.

        Each appears once if all serve equally many query heads, as attention requires; otherwise once per query head.
        """
        group = self.whole.num_attention_heads // self.whole.num_key_value_heads
        needed = [head // group for head in self.heads]
        distinct = sorted(set(needed))
        even = len({needed.count(head) for head in distinct}) == 1
        return tuple(distinct if even else needed)

    @property
    def counted(self) -> tuple[bool, ...]:
        """Which of ``kv_heads`` this rank adds to a sum over all ranks, so that each head counts once."""
        group = self.whole.num_attention_heads // self.whole.num_key_value_heads
        held = self.kv_heads
        return tuple(head * group in self.heads and head not in held[:index] for index, head in enumerate(held))

    @property
    def vocabulary(self) -> range:
        """The token ids whose rows of the embedding and the head this rank holds."""
        return self.share_of(self.whole.vocab_size)

    def narrowed(self) -> ModelConfig:
        """The config of a transformer that computes only this part."""
        moe, alibi = self.whole.moe, self.whole.alibi
        return replace(
            self.whole,
            vocab_size=len(self.vocabulary),
            num_attention_heads=len(self.heads),
            num_key_value_heads=len(self.kv_heads),
            intermediate_size=len(self.share_of(self.whole.intermediate_size)),
            moe=moe and self._narrowed_experts(moe),
            alibi=alibi and replace(alibi, slopes=tuple(alibi.slopes[head] for head in self.heads)),
        )

    def _narrowed_experts(self, moe: MoeConfig) -> MoeConfig:
        shared = moe.shared_intermediate_size
        return replace(
            moe,
            intermediate_size=len(self.share_of(moe.intermediate_size)),
            shared_intermediate_size=None if shared is None else len(self.share_of(shared)),
        )

    def slice_of(self, target: str) -> ParameterSlice:
        """The part of ``Transformer``'s parameter ``target`` that this rank holds."""
        name = re.sub(r"^blocks\.\d+\.|(?<=experts\.)\d+\.", "", target)
        return SLICES[name](self) if name in SLICES else ParameterSlice()

    def _head_rows(self, first: int, heads: tuple[int, ...] | range) -> tuple[range, ...]:
        """The rows of ``heads`` in a matrix whose head number ``first`` is the first of their kind."""
        size = self.whole.head_dim
        return tuple(range((first + head) * size, (first + head + 1) * size) for head in heads)

    def qkv(self) -> ParameterSlice:
        """The rows of this rank's queries, keys and values, which are stacked."""
        queries, keys = self.whole.num_attention_heads, self.whole.num_key_value_heads
        stacked = ((0, self.heads), (queries, self.kv_heads), (queries + keys, self.kv_heads))
        return ParameterSlice(rows=tuple(rows for first, heads in stacked for rows in self._head_rows(first, heads)))

    def head_norm(self, heads: tuple[int, ...] | range) -> ParameterSlice:
        """The norm weights of ``heads``; a weight that all heads share is held by every rank."""
        whole = self.whole.qk_norm == "head"
        return ParameterSlice() if whole else ParameterSlice(rows=self._head_rows(0, heads))

    def attention_output(self) -> ParameterSlice:
        """The columns that multiply the outputs of ``heads``."""
        size = self.whole.head_dim
        return ParameterSlice(columns=range(self.heads.start * size, self.heads.stop * size))

    def widening(self, size: int) -> ParameterSlice:
        """The rows of an MLP with ``size`` features; gate and up are stacked if it is gated."""
        part = self.share_of(size)
        starts = (0, size) if self.whole.gated_mlp else (0,)
        return ParameterSlice(rows=tuple(range(start + part.start, start + part.stop) for start in starts))

    @property
    def expert_size(self) -> int:
        return 0 if self.whole.moe is None else self.whole.moe.intermediate_size

    @property
    def shared_size(self) -> int:
        return 0 if self.whole.moe is None else self.whole.moe.shared_intermediate_size or 0


_VOCABULARY: Callable[[Partition], ParameterSlice] = lambda part: ParameterSlice(rows=(part.vocabulary,))  # noqa: E731
_ONCE: Callable[[Partition], ParameterSlice] = lambda part: ParameterSlice(once=True)  # noqa: E731

SLICES: dict[str, Callable[[Partition], ParameterSlice]] = {
    "embedding.weight": _VOCABULARY,
    "head.weight": _VOCABULARY,
    "head.bias": _VOCABULARY,
    "attn.qkv.weight": Partition.qkv,
    "attn.qkv.bias": Partition.qkv,
    "attn.q_norm.weight": lambda part: part.head_norm(part.heads),
    "attn.k_norm.weight": lambda part: part.head_norm(part.kv_heads),
    "attn.out.weight": Partition.attention_output,
    "attn.out.bias": _ONCE,
    "attn.sinks": lambda part: ParameterSlice(rows=(part.heads,)),
    "mlp.up.weight": lambda part: part.widening(part.whole.intermediate_size),
    "mlp.up.bias": lambda part: part.widening(part.whole.intermediate_size),
    "mlp.down.weight": lambda part: ParameterSlice(columns=part.share_of(part.whole.intermediate_size)),
    "mlp.down.bias": _ONCE,
    "mlp.experts.up.weight": lambda part: part.widening(part.expert_size),
    "mlp.experts.up.bias": lambda part: part.widening(part.expert_size),
    "mlp.experts.down.weight": lambda part: ParameterSlice(columns=part.share_of(part.expert_size)),
    "mlp.experts.down.bias": _ONCE,
    "mlp.shared.up.weight": lambda part: part.widening(part.shared_size),
    "mlp.shared.up.bias": lambda part: part.widening(part.shared_size),
    "mlp.shared.down.weight": lambda part: ParameterSlice(columns=part.share_of(part.shared_size)),
    "mlp.shared.down.bias": _ONCE,
}


def read_slice(weights: WeightFiles, rule: Rule, partition: Partition, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Read the part of the rule's parameter that the rank holds; ``shape`` is that of the whole parameter."""
    kept, dtype = partition.slice_of(rule.target), dtype_for(rule.target, dtype)
    if kept.once and partition.rank > 0:
        return torch.zeros(shape, dtype=dtype)
    if kept.rows is None:
        rows = torch.arange(shape[0])
    else:
        rows = torch.cat([torch.arange(part.start, part.stop) for part in kept.rows])
    pieces, first = [], 0
    for source in rule.sources:
        inside = rows[(rows >= first) & (rows < first + source.rows)] - first
        first += source.rows
        if not len(inside):
            continue
        pieces.append(_read(weights, source, inside, kept.columns, tuple(shape[1:])).to(dtype))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _read(weights: WeightFiles, source: Source, rows: Tensor, columns: range | None, wide: tuple[int, ...]) -> Tensor:
    """The given rows of a source, in that order; ``wide`` is () for a vector, otherwise its number of columns."""
    file, entry = weights.tensors[source.name]
    across = slice(None) if columns is None else slice(columns.start, columns.stop)
    part_of_file = entry.name in file.entries and not weights.packed(source.name)
    if source.shape or source.name in weights.adapted or not part_of_file:
        whole = source.arranged(weights.whole(source), wide)[rows]  # small, or changed while it is read
        return whole[:, across].contiguous() if wide else whole
    order = source.arranged_rows()[rows]
    needed = torch.unique(order)  # sorted
    with safe_open(file.path, framework="pt") as tensors:
        reader = tensors.get_slice(entry.name)
        if source.transposed:
            read = torch.cat([reader[across, start:stop].T for start, stop in _runs(needed)])
        elif wide:
            read = torch.cat([reader[start:stop, across] for start, stop in _runs(needed)])
        else:
            read = torch.cat([reader[start:stop] for start, stop in _runs(needed)])
    if torch.equal(order, needed):
        return read.contiguous()
    return read[torch.searchsorted(needed, order)]


def _runs(sorted_rows: Tensor) -> Iterator[tuple[int, int]]:
    """The consecutive ranges in sorted numbers, as (start, stop)."""
    breaks = (sorted_rows.diff() != 1).nonzero().flatten() + 1
    for run in torch.tensor_split(sorted_rows, breaks):
        yield int(run[0]), int(run[-1]) + 1
