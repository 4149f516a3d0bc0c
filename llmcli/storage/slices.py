"""Reading one rank's share of a parameter from its files, and no more than that."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import safe_open
from torch import Tensor

from llmcli.model.families.rules import Part, Rule
from llmcli.storage.partition import Share
from llmcli.storage.tensors import Stored


def read_share(stored: Stored, rule: Rule, share: Share, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """What the rank keeps of the rule's parameter, whose whole has ``shape``, in memory of its own."""
    cut = share.cut(rule.target)
    if cut.once and share.rank > 0:
        return torch.zeros(shape, dtype=dtype)
    rows = torch.arange(shape[0]) if cut.rows is None else torch.cat([torch.arange(r.start, r.stop) for r in cut.rows])
    pieces, first = [], 0
    for part in rule.parts:
        inside = rows[(rows >= first) & (rows < first + part.rows)] - first
        first += part.rows
        if not len(inside):
            continue
        pieces.append(_read(stored, part, inside, cut.columns, tuple(shape[1:])).to(dtype))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _read(stored: Stored, part: Part, rows: Tensor, columns: range | None, wide: tuple[int, ...]) -> Tensor:
    """Some of the part's rows, in that order; ``wide`` is how many columns there are."""
    file, entry = stored.places[part.source]
    across = slice(None) if columns is None else slice(columns.start, columns.stop)
    if part.shape or part.source in stored.adapted or file.dtype(entry).itemsize == 1:
        whole = part.arranged(stored.whole(part), wide)[rows]  # small, or changed as it is read
        return whole[:, across].contiguous() if wide else whole
    order = part.arranged_rows()[rows]
    needed = torch.unique(order)  # sorted
    with safe_open(file.path, framework="pt") as tensors:
        reader = tensors.get_slice(entry.name)
        if part.transposed:
            read = torch.cat([reader[across, start:stop].T for start, stop in _runs(needed)])
        elif wide:
            read = torch.cat([reader[start:stop, across] for start, stop in _runs(needed)])
        else:
            read = torch.cat([reader[start:stop] for start, stop in _runs(needed)])
    if torch.equal(order, needed):
        return read.contiguous()
    return read[torch.searchsorted(needed, order)]


def _runs(sorted_rows: Tensor) -> Iterator[tuple[int, int]]:
    """The ranges that sorted numbers make, as (start, stop)."""
    breaks = (sorted_rows.diff() != 1).nonzero().flatten() + 1
    for run in torch.tensor_split(sorted_rows, breaks):
        yield int(run[0]), int(run[-1]) + 1
