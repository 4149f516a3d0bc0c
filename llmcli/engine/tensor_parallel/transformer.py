"""One rank's part of a transformer: the same modules, but narrower, with outputs summed over the ranks.

Source: Shoeybi et al. 2019, Megatron-LM. Each layer has two sums, after attention and after the MLP.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.engine.tensor_parallel.process_group import MESSAGE_SIZE, ProcessGroup
from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError, usage_error
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.families.rules import Rule
from llmcli.model.layers import Embedding, Norm
from llmcli.model.trace import Trace
from llmcli.storage.checkpoint import Checkpoint, DTypeChoice, Progress
from llmcli.storage.finite import LoadNotes
from llmcli.storage.partition import Partition, read_slice

END, READ, UNEMBED, FORGET = range(4)  # what the leader's messages request
INLINE_IDS = MESSAGE_SIZE - 6  # token ids that fit into a message


class SplitEmbedding(Embedding):
    """The rows of some tokens. A token's row is summed over the ranks, of which all but one contribute 0."""

    def __init__(self, partition: Partition, group: ProcessGroup) -> None:
        super().__init__(len(partition.vocabulary), partition.whole.hidden_size)
        self.first, self.group = partition.vocabulary.start, group

    def forward(self, ids: Tensor) -> Tensor:
        local = ids - self.first
        held = (local >= 0) & (local < self.num_embeddings)
        rows = F.embedding(local.clamp(0, self.num_embeddings - 1), self.weight).float()
        return self.group.sum(rows.masked_fill(~held.unsqueeze(-1), 0))


class SplitNorm(Norm):
    """RMSNorm over heads that are distributed among the ranks: the squares are summed over all ranks.

    ``heads`` is their number in the whole model; ``counted`` says for each of this rank's heads whether this rank adds
    it to the sum.
    """

    def __init__(self, config: ModelConfig, heads: int, counted: tuple[bool, ...], group: ProcessGroup) -> None:
        assert config.norm == "rms"
        super().__init__(config, len(counted) * config.head_dim)
        self.counted, self.whole, self.group = counted, heads * config.head_dim, group

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = wide.square().view(*x.shape[:-1], len(self.counted), -1).sum(-1)  # [..., heads]
        counted = torch.tensor(self.counted, dtype=squares.dtype, device=x.device)
        total = self.group.sum((squares * counted).sum(-1, keepdim=True))
        normed = wide * torch.rsqrt(total / self.whole + self.eps)
        return normed * self.scale()


class SplitTransformer(EngineTransformer):
    """A rank's part of the model. The leader runs passes, in which the other ranks take part while they ``serve``.

    ``config`` is that of the part, but with the whole vocabulary. A trace records the whole residual, but only the
    leader's own attention heads.
    """

    complete = False

    def __init__(self, partition: Partition, group: ProcessGroup) -> None:
        narrow = partition.narrowed()
        super().__init__(narrow)
        self.config = replace(narrow, vocab_size=partition.whole.vocab_size)
        self.group, self.partition = group, partition
        self.embedding = SplitEmbedding(partition, group)
        for block in self.blocks:
            attn: Any = block.attn
            if partition.whole.qk_norm == "full":
                attn.q_norm = SplitNorm(narrow, partition.whole.num_attention_heads, (True,) * attn.heads, group)
                attn.k_norm = SplitNorm(narrow, partition.whole.num_key_value_heads, partition.counted, group)
            modules: tuple[Any, ...] = (attn, block.mlp)
            for module in modules:
                module.register_forward_hook(lambda module, inputs, out: group.sum(out))
        self._keys: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._next = 1
        self._forgotten: list[int] = []

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        for key in [self._forgotten.pop() for _ in range(len(self._forgotten))]:
            self.group.send(FORGET, key)
        key, past, planned = (0, 0, 0) if cache is None else (self._key(cache), cache.length, cache.planned)
        rows, count = ids.shape
        self.check_positions(past + count)
        inline = ids.numel() <= INLINE_IDS
        with self.group.undivided_pass():
            self.group.send(READ, key, past, planned, rows, count, *(ids.flatten().tolist() if inline else ()))
            if not inline:
                self.group.broadcast(ids.contiguous())
            return super().hidden(ids, cache, trace)

    def unembed(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        with self.group.undivided_pass():
            self.group.send(UNEMBED, len(rows))
            return self._logits(self.group.broadcast(rows)).view(*x.shape[:-1], -1)

    def _logits(self, x: Tensor) -> Tensor:
        """The logits [n, V] of x [n, C] on the leader; only the rank's own columns on the others."""
        widest = -(-self.config.vocab_size // self.group.size)
        own = super().unembed(x)
        parts = self.group.gather(F.pad(own, (0, widest - own.shape[-1])).contiguous())
        sizes = [len(replace(self.partition, rank=rank).vocabulary) for rank in range(len(parts))]
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], -1) if parts else own

    def _key(self, cache: KVCache) -> int:
        """The number that identifies a cache to the other ranks."""
        if cache not in self._keys:
            self._keys[cache] = self._next
            weakref.finalize(cache, self._forgotten.append, self._next)
            self._next += 1
        return self._keys[cache]

    def end(self) -> None:
        """Make the other ranks return from ``serve``, if they are still running."""
        with suppress(LlmcliError):
            self.group.send(END)

    @torch.inference_mode()
    def serve(self) -> None:
        """Take part in the leader's passes until it calls ``end``. Raises LlmcliError if the leader is lost."""
        caches: dict[int, KVCache] = {}
        while True:
            request, *values = self.group.receive()
            if request == END:
                return
            if request == FORGET:
                del caches[values[0]]
            elif request == UNEMBED:
                x = torch.empty(values[0], self.config.hidden_size, dtype=torch.float32, device=self.device)
                self._logits(self.group.broadcast(x))
            elif request == READ:
                self._read(caches, *values)

    def _read(
        self, caches: dict[int, KVCache], key: int, past: int, planned: int, rows: int, count: int, *ids: int
    ) -> None:
        """Take part in a pass of the leader: ``past`` positions are cached, ``rows`` texts get ``count`` ids each."""
        if rows * count <= INLINE_IDS:
            received = torch.tensor(ids[: rows * count], device=self.device)
        else:
            received = self.group.broadcast(torch.empty(rows * count, dtype=torch.int64, device=self.device))
        cache = None
        if key:
            if key not in caches:
                caches[key] = self.new_cache(rows)
            cache = caches[key]
            cache.truncate(past)
            cache.planned = planned
        super().hidden(received.view(rows, count), cache)


def load_split(
    checkpoint: Checkpoint,
    group: ProcessGroup,
    *,
    dtype: DTypeChoice = None,
    adapter: Path | None = None,
    progress: Progress | None = None,
    notes: LoadNotes | None = None,
) -> SplitTransformer:
    """Load this rank's part of a model, and nothing else, to the group's device. Arguments as for ``Checkpoint.load``.

    Raises the errors of ``Checkpoint.load``, and LlmcliError if the weights are quantized: they cannot be split.
    """
    if checkpoint.quantization is not None or checkpoint.folder.is_file():
        raise usage_error("quantized weights and GGUF files cannot be split among processes", kind="not-divisible")
    opened = checkpoint.open(adapter)
    partition = Partition(opened.config, group.rank, group.size)
    with torch.device("meta"):
        model = SplitTransformer(partition, group)
    stored_as = opened.dtype(dtype)

    def parameter(rule: Rule) -> Tensor:
        return read_slice(opened.weights, rule, partition, opened.shapes[rule.target], stored_as).to(group.device)

    opened.fill(model, parameter, progress, LoadNotes() if notes is None else notes)
    model.fill_constants(stored_as, group.device)
    model.eval()
    return model
