"""Texts side by side: the keys and values of each in a row, and a step that takes them all one token further.

What becomes of a text does not depend on those beside it, to the last bit where the kernels allow: there are
always whole blocks of rows and of positions, and the products of one row are then the same in any company. (On
a CPU that is so in bfloat16 and for rounded weights; in fp32 attention on several threads is not as strict.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcli.model.attention import Place
from llmcli.model.cache import KVCache
from llmcli.model.config import RopeConfig
from llmcli.model.positions import span
from llmcli.model.transformer import Transformer

ROWS = 8  # a product of so many vectors, or of a multiple, has the same bits for each
POSITIONS = 64  # likewise for the keys that attention sees


class Rows:
    """Keys and values of several texts, [rows, K, capacity, D] a layer; ``lengths`` are their positions.

    Every layer keeps all positions, also a windowed one: a mask hides what it must not see. Rows behind the
    last text are padding, which is computed and thrown away.
    """

    length = 0  # attention counts what is past by the mask

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.lengths: list[int] = []
        self._spans: list[int] = []  # by which angles each text is turned; see ``rope.span``
        self._planned: list[int] = []
        self._keys, self._values = self._empty(0, 0), self._empty(0, 0)
        self._tables: dict[tuple[RopeConfig, int], tuple[Tensor, Tensor]] = {}
        self._places = (torch.empty(0), torch.empty(0))  # of the pass: its rows, and the positions they are written to

    @property
    def padded(self) -> int:
        """How many rows a pass has."""
        return _whole(len(self.lengths), ROWS)

    @property
    def capacity(self) -> int:
        return self._keys[0].shape[2]

    @torch.inference_mode()
    def add(self, cache: KVCache) -> None:
        """Take over a text that was read alone, behind the last, as a copy."""
        self.lengths.append(cache.length)
        self._spans.append(cache.span)
        self._planned.append(cache.planned)
        self._fit()
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            first, k, v = cache.held(layer)
            row = slice(len(self.lengths) - 1, len(self.lengths))
            keys[row, :, first : cache.length] = k
            values[row, :, first : cache.length] = v

    @torch.inference_mode()
    def remove(self, row: int) -> None:
        """Forget a text; the last one moves into its row."""
        for buffer in (*self._keys, *self._values):
            buffer[row] = buffer[len(self.lengths) - 1]
        for numbers in (self.lengths, self._spans, self._planned):
            numbers[row] = numbers[-1]
            numbers.pop()
        self._fit()

    def planned(self, row: int) -> int:
        """The length that decides a text's angles: what it was planned for, or will have with one more position."""
        return max(self.lengths[row] + 1, self._planned[row])

    def stale(self, row: int) -> bool:
        """Whether one more position would turn a text by other angles than its keys were: then read it anew."""
        return span(self.model.config.rope, self.planned(row)) != self._spans[row]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each text one token; the logits that follow, fp32 [texts, V]."""
        model, count = self.model, len(tokens)
        model.check_positions(max(self.lengths) + 1)
        self._fit()
        padding = [0] * (self.padded - count)
        positions = torch.tensor([*self.lengths, *padding], device=model.device)
        self._places = torch.arange(len(positions), device=model.device), positions
        x = model.embed_tokens(torch.tensor([*tokens, *padding], device=model.device).unsqueeze(1))  # [rows, 1, C]
        if model.positions is not None:
            x = x + model.positions(positions).unsqueeze(1)
        x = model.through(x, self._where(positions), self)
        logits = model.unembed(x[:, 0])[:count].float()
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [rows, K, 1, D] at each text's place; all of the layer's, [rows, K, capacity, D]."""
        rows, positions = self._places
        keys, values = self._keys[layer][: len(rows)], self._values[layer][: len(rows)]
        keys[rows, :, positions] = k.squeeze(2)
        values[rows, :, positions] = v.squeeze(2)
        return keys, values

    def _fit(self) -> None:
        """Buffers for one more position of each text, and not for many times as much."""
        rows, needed = self.padded, _whole(max(self.lengths, default=0) + 1, POSITIONS)
        held = self._keys[0].shape[0]
        if rows <= held <= 2 * rows and needed <= self.capacity <= 2 * needed:
            return
        for buffers in (self._keys, self._values):
            for layer, old in enumerate(buffers):
                new = old.new_zeros(rows, old.shape[1], needed, old.shape[3])  # a mask does not hide NaN
                part = (slice(0, min(rows, held)), slice(None), slice(0, min(needed, old.shape[2])))
                new[part] = old[part]
                buffers[layer] = new

    def _empty(self, rows: int, capacity: int) -> list[Tensor]:
        config = self.model.config
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        return [torch.empty(shape, device=self.model.device, dtype=self.model.dtype) for _ in layers]

    def _where(self, positions: Tensor) -> tuple[Place, Place]:
        """As of ``Transformer.places``, for a position a row; a window is in the mask."""
        config = self.model.config
        keys, queries = torch.arange(self.capacity, device=positions.device), positions.unsqueeze(1)
        seen = keys <= queries  # [rows, capacity]
        full = Place(self._angles(config.rope, positions), None, self._mask(seen))
        if config.sliding_window is None:
            return full, full
        local = full.rope if config.local_rope is None else self._angles(config.local_rope, positions)
        return full, Place(local, None, self._mask(seen & (keys > queries - config.sliding_window)))

    def _mask(self, seen: Tensor) -> Tensor:
        """``seen`` as ``Attention`` takes it, [rows, 1, 1, capacity]."""
        seen = seen[:, None, None]
        if self.model.config.attention_softcap is not None:
            return seen
        return torch.zeros_like(seen, dtype=self.model.dtype).masked_fill_(~seen, float("-inf"))

    def _angles(self, rope: RopeConfig | None, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """cos and signed sin of a position a row, [rows, 1, 1, R] each."""
        if rope is None:
            return None
        spans = [*self._spans, *[0] * (len(positions) - len(self._spans))]
        several = sorted(set(spans))
        tables = [self._table(rope, span) for span in several]
        places = positions + torch.tensor([several.index(span) for span in spans], device=positions.device) * len(
            tables[0][0]
        )
        cos, sin = (torch.cat(parts)[places][:, None, None] for parts in zip(*tables, strict=True))
        return cos, sin

    def _table(self, rope: RopeConfig, span: int) -> tuple[Tensor, Tensor]:
        """The angles of all positions that there is room for."""
        key = (rope, span)
        if key not in self._tables or len(self._tables[key][0]) != self.capacity:
            self._tables = {other: table for other, table in self._tables.items() if len(table[0]) == self.capacity}
            self._tables[key] = self.model.angles(rope, 0, self.capacity, span)
        return self._tables[key]


def _whole(count: int, block: int) -> int:
    """``count``, rounded up to whole blocks, at least one."""
    return max(-(-count // block), 1) * block
