"""One rank's share of a transformer: the same modules, narrower, whose outputs are summed among the ranks.

Source: Shoeybi et al. 2019, Megatron-LM. Of each layer, attention and MLP are summed once each.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.engine.tensor_parallel.process_group import MESSAGE, Ranks
from llmcli.errors import LlmcliError
from llmcli.model.cache import KVCache
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Embedding, Norm
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.partition import Share

END, READ, UNEMBED, FORGET = range(4)  # what the leader's messages ask for
INSIDE = MESSAGE - 6  # token ids that a message has room for


class SplitEmbedding(Embedding):
    """Some tokens' rows of the table; whoever holds a token's row gives it to all."""

    def __init__(self, share: Share, ranks: Ranks) -> None:
        super().__init__(len(share.vocabulary), share.whole.hidden_size)
        self.first, self.ranks = share.vocabulary.start, ranks

    def forward(self, ids: Tensor) -> Tensor:
        places = ids - self.first
        here = (places >= 0) & (places < self.num_embeddings)
        rows = F.embedding(places.clamp(0, self.num_embeddings - 1), self.weight)
        return self.ranks.sum(rows.masked_fill(~here.unsqueeze(-1), 0))


class SplitNorm(Norm):
    """RMSNorm over heads of which each rank has some: their squares are summed over all."""

    def __init__(self, config: ModelConfig, heads: int, counted: tuple[bool, ...], ranks: Ranks) -> None:
        assert config.norm == "rms"
        super().__init__(config, len(counted) * config.head_dim)
        self.counted, self.whole, self.ranks = counted, heads * config.head_dim, ranks

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = wide.square().view(*x.shape[:-1], len(self.counted), -1).sum(-1)  # [..., heads]
        counted = torch.tensor(self.counted, dtype=squares.dtype, device=x.device)
        total = self.ranks.sum((squares * counted).sum(-1, keepdim=True))
        normed = wide * torch.rsqrt(total / self.whole + self.eps)
        return (normed * (self.weight.float() + self.offset)).to(x.dtype)


class SplitTransformer(Transformer):
    """A rank's share. Passes of the leader's are passes of everyone's; the others only ``serve``.

    ``config`` is that of the share, but for the vocabulary, which is the whole one. What a trace keeps of the
    residual is whole, what it keeps of attention are the leader's own heads.
    """

    alone = False

    def __init__(self, share: Share, ranks: Ranks) -> None:
        narrow = share.narrowed()
        super().__init__(narrow)
        self.config = replace(narrow, vocab_size=share.whole.vocab_size)
        self.ranks, self.share = ranks, share
        self.embedding = SplitEmbedding(share, ranks)
        for block in self.blocks:
            attn: Any = block.attn
            if share.whole.qk_norm == "full":
                attn.q_norm = SplitNorm(narrow, share.whole.num_attention_heads, (True,) * attn.heads, ranks)
                attn.k_norm = SplitNorm(narrow, share.whole.num_key_value_heads, share.counted, ranks)
            modules: tuple[Any, ...] = (attn, block.mlp)
            for module in modules:
                module.register_forward_hook(lambda module, inputs, out: ranks.sum(out))
        self._keys: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._next = 1
        self._forgotten: list[int] = []

    def hidden(self, ids: Tensor, cache: KVCache | None = None, trace: Trace | None = None) -> Tensor:
        for key in [self._forgotten.pop() for _ in range(len(self._forgotten))]:
            self.ranks.tell(FORGET, key)
        key, past, planned = (0, 0, 0) if cache is None else (self._key(cache), cache.length, cache.planned)
        rows, count = ids.shape
        self.check_positions(past + count)
        inside = ids.numel() <= INSIDE
        with self.ranks.together():
            self.ranks.tell(READ, key, past, planned, rows, count, *(ids.flatten().tolist() if inside else ()))
            if not inside:
                self.ranks.spread(ids.contiguous())
            return super().hidden(ids, cache, trace)

    def unembed(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        with self.ranks.together():
            self.ranks.tell(UNEMBED, len(rows))
            return self._logits(self.ranks.spread(rows)).view(*x.shape[:-1], -1)

    def _logits(self, x: Tensor) -> Tensor:
        """The logits [n, V] of x [n, C] on the leader; on the others, nothing of use."""
        most = -(-self.config.vocab_size // self.ranks.size)
        own = super().unembed(x)
        parts = self.ranks.collect(F.pad(own, (0, most - own.shape[-1])).contiguous())
        sizes = [len(replace(self.share, rank=rank).vocabulary) for rank in range(len(parts))]
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], -1) if parts else own

    def _key(self, cache: KVCache) -> int:
        """The number under which the other ranks know a cache."""
        if cache not in self._keys:
            self._keys[cache] = self._next
            weakref.finalize(cache, self._forgotten.append, self._next)
            self._next += 1
        return self._keys[cache]

    def end(self) -> None:
        """Let the other ranks go, if they are still there."""
        with suppress(LlmcliError):
            self.ranks.tell(END)

    @torch.inference_mode()
    def serve(self) -> None:
        """Take part in the leader's passes until it ends. Errors: it is lost."""
        caches: dict[int, KVCache] = {}
        while True:
            wanted, *told = self.ranks.hear()
            if wanted == END:
                return
            if wanted == FORGET:
                del caches[told[0]]
            elif wanted == UNEMBED:
                x = torch.empty(told[0], self.config.hidden_size, dtype=self.dtype, device=self.device)
                self._logits(self.ranks.spread(x))
            elif wanted == READ:
                self._read(caches, *told)

    def _read(
        self, caches: dict[int, KVCache], key: int, past: int, planned: int, rows: int, count: int, *ids: int
    ) -> None:
        """Another rank's part of a pass of the leader's."""
        if rows * count <= INSIDE:
            taken = torch.tensor(ids[: rows * count], device=self.device)
        else:
            taken = self.ranks.spread(torch.empty(rows * count, dtype=torch.int64, device=self.device))
        cache = None
        if key:
            if key not in caches:
                caches[key] = self.new_cache(rows)
            cache = caches[key]
            cache.truncate(past)
            cache.planned = planned
        super().hidden(taken.view(rows, count), cache)
