"""Matrices of 8 or 4 bits a weight: a half or a third of the bytes to read for a token, for a little quality.

Many tokens are multiplied in whole numbers: each is rounded to 8 bits by its own largest value (Yao et
al. 2022, ZeroQuant), so that what comes before a token still decides alone what it becomes. Tables, and
a head tied to one, have 8 bits in any case; norms, biases, routers and learned positions stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import LlmcliError, usage_error
from llmcli.model.layers import Embedding, Linear
from llmcli.model.transformer import Transformer
from llmcli.storage.rounding import GROUP, SMALLEST, from_nibbles, nibbles, to_int4, to_int8

Kind = Literal["int8", "int4"]

BLOCK = 64  # rows that torch's 4-bit kernel packs together
FEW = 64  # tokens up to which that kernel is faster than unpacking for many
AT_ONCE = 2**21  # weights rounded or unpacked together: what a processor's cache holds
few_product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu
pack: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu


class Int8Linear(nn.Module):
    """A ``Linear`` of int8 weights [out, in] with a scale a row, fp32 [out]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = _kept(weight), _kept(scale), None if bias is None else _kept(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = product(x, self.weight.t(), self.scale)
        return y if self.bias is None else y + self.bias

    def dense(self, part: slice) -> Tensor:
        """As ``Linear.dense``."""
        return self.weight[part] * self.scale[part].unsqueeze(-1)


class Int8Embedding(nn.Module):
    """An ``Embedding`` of int8 rows [V, C] with a scale each, fp32 [V]; looked up as ``dtype``."""

    def __init__(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.scale, self.dtype = _kept(weight), _kept(scale), dtype

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight[ids] * self.scale[ids].unsqueeze(-1)).to(self.dtype)

    def unembed(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., V], as ``Embedding.unembed``."""
        return product(x, self.weight.t(), self.scale)


class Int4Linear(nn.Module):
    """A ``Linear`` of 4-bit weights, given as nibbles [out, in / 2], factors [out, in / GROUP] and scale [out].

    They are kept as torch's kernel for few tokens wants them. For many, blocks of rows are unpacked to
    8 bits in turn, in a fraction of the time that the products take.
    """

    def __init__(self, pairs: Tensor, factors: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = len(pairs), 2 * pairs.shape[1]
        missing = -len(pairs) % BLOCK
        factors = F.pad(factors, (0, 0, 0, missing))
        self.packed = _kept(torch.empty(len(pairs) + missing, pairs.shape[1], dtype=torch.uint8))
        place = 0
        for piece in _pieces(pairs):  # in place: beside the model there is never more than a piece
            done = packed(from_nibbles(piece))
            self.packed[place : place + len(done)] = done
            place += len(done)
        self.factors = _kept(factors.t().contiguous())  # [groups, N]
        self.scale, self.bias = _kept(scale), None if bias is None else _kept(bias)
        self.scales_and_zeros = _kept(torch.zeros(*self.factors.shape, 2, dtype=dtype))  # [groups, N, 2]
        self.scales_and_zeros[..., 0] = self.factors * F.pad(scale, (0, missing))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            y = self._few(x.view(1, -1)).view(-1)
        else:
            rows = x.reshape(-1, self.in_features)
            y = self._many(rows) if len(rows) > FEW and knows_layout() else self._few(rows)
            y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _few(self, rows: Tensor) -> Tensor:
        y: Tensor = few_product(rows, self.packed, GROUP, self.scales_and_zeros)
        return y if y.shape[1] == self.out_features else y[:, : self.out_features].contiguous()

    def _many(self, rows: Tensor) -> Tensor:
        codes, size = to_int8(rows)
        step = max(AT_ONCE // self.in_features // BLOCK, 1) * BLOCK
        parts = [torch._int_mm(codes, self.rows(start, start + step)) for start in range(0, len(self.packed), step)]
        return (torch.cat(parts, dim=-1)[:, : self.out_features] * self.scale * size).to(rows.dtype)

    def dense(self, part: slice) -> Tensor:
        """As ``Linear.dense``."""
        if not knows_layout():
            every = torch.eye(self.in_features, dtype=self.scales_and_zeros.dtype)
            return self._few(every).t()[part].float()
        start, end, _ = part.indices(self.out_features)
        first = start // BLOCK * BLOCK
        rows = self.rows(first, -(-end // BLOCK) * BLOCK).t()[start - first : end - first]
        return rows * self.scale[start:end].unsqueeze(-1)

    def rows(self, start: int, end: int) -> Tensor:
        """Weights of the rows start .. end-1, whole blocks, in units of their scale: int8 [in, rows]."""
        codes = unpacked(self.packed[start:end])  # [blocks, in, BLOCK]
        blocks, K, _ = codes.shape
        factors = self.factors[:, start:end].view(-1, blocks, 1, BLOCK).transpose(0, 1)  # [blocks, groups, 1, BLOCK]
        codes.view(blocks, -1, GROUP, BLOCK).mul_(factors)
        return codes.transpose(0, 1).reshape(K, blocks * BLOCK)


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K], rounded to int8, times int8 weight [K, N] and its scale [N]."""
    if x.dim() == 1:  # a single vector, whose own scale can be a plain number
        size = max(float(x.abs().max()), SMALLEST) / 127
        codes = x.to(torch.float32, copy=True).mul_(1 / size).round_().to(torch.int8)
        return (torch._int_mm(codes.view(1, -1), weight).view(-1) * scale).mul_(size).to(x.dtype)
    codes, sizes = to_int8(x.reshape(-1, x.shape[-1]))
    return (torch._int_mm(codes, weight) * scale * sizes).to(x.dtype).view(*x.shape[:-1], -1)


def packed(codes: Tensor) -> Tensor:
    """Numbers from -8 to 7 [N, K] as torch's kernel for few tokens wants them, in whole blocks: uint8 [.., K / 2]."""
    whole = F.pad(codes, (0, 0, 0, -len(codes) % BLOCK))
    result: Tensor = pack(whole.int() + 8, 1)
    return result


def unpacked(packs: Tensor) -> Tensor:
    """Of packed blocks [N, K / 2] the numbers, int8 [N / BLOCK, K, BLOCK]: the rows of a column lie side by side.

    A byte holds a row's number and that of the row half a block below.
    """
    N, half = packs.shape
    signed = (packs ^ 0x88).view(torch.int8).view(N // BLOCK, 2 * half, BLOCK // 2)
    return torch.cat(((signed << 4) >> 4, signed >> 4), dim=-1)


@lru_cache(maxsize=1)
def knows_layout() -> bool:
    """Whether ``unpacked`` undoes ``packed`` here: torch's layout is its own and differs between processors."""
    codes = torch.arange(BLOCK * GROUP).view(BLOCK, GROUP).remainder(13).sub(6).to(torch.int8)
    return torch.equal(unpacked(packed(codes))[0], codes.t())


def quantize(model: Transformer, kind: Kind, progress: Callable[[int, int], None] | None = None) -> None:
    """Round a model's matrices and tables, in place. ``progress`` is told weights done and in all.

    Errors: a model that is not on the CPU or rounded before; weights that are no numbers.
    """
    if model.device.type != "cpu":
        raise usage_error(f"quantised weights run on the CPU, not on {model.device.type}", "give --device cpu")
    places = list(matrices(model))
    if not places:
        raise usage_error("the weights are quantised already", "leave --quantize out")
    done, total = 0, sum(module.weight.numel() for _, module in places)
    for name, module in places:
        size = module.weight.numel()
        replace_module(
            model, name, build(stored_tensors(module, kind, name), model.dtype, table=isinstance(module, Embedding))
        )
        done += size
        if progress is not None:
            progress(done, total)


def matrices(model: Transformer) -> Iterator[tuple[str, Linear | Embedding]]:
    """The modules that are rounded, by name."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (Linear, Embedding)) and name != "positions" and not name.endswith(".router"):
            yield name, module


def rounding(model: Transformer) -> Kind | None:
    """How a model's matrices are rounded, if they are; int4 where any has 4 bits."""
    if any(True for _ in matrices(model)):
        return None
    return "int4" if any(isinstance(module, Int4Linear) for module in model.modules()) else "int8"


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def stored_tensors(module: Linear | Embedding, kind: Kind, name: str) -> dict[str, Tensor]:
    """What stands for a module in a file: weight, scale, in 4 bits factors, and the bias if it has one."""
    weight = module.weight.detach()
    tensors: dict[str, Tensor] = {}
    for piece in _pieces(weight):
        if not piece.isfinite().all():
            raise LlmcliError(f"{name}.weight holds values that are no numbers", "the model cannot be quantised")
    if "factors" in rounded_parts(module, kind):
        codes, factors, scales = zip(*(to_int4(piece) for piece in _pieces(weight)), strict=True)
        tensors["weight"], tensors["factors"] = nibbles(torch.cat(codes)), torch.cat(factors)
        tensors["scale"] = torch.cat(scales).view(-1)
    else:
        codes, scales = zip(*(to_int8(piece) for piece in _pieces(weight)), strict=True)
        tensors["weight"], tensors["scale"] = torch.cat(codes), torch.cat(scales).view(-1)
    if isinstance(module, Linear) and module.bias is not None:
        tensors["bias"] = module.bias.detach()
    return tensors


def rounded_parts(module: Linear | Embedding, kind: Kind) -> dict[str, tuple[int, ...]]:
    """The shape of each part that ``stored_tensors`` gives for a module, but the bias."""
    N, K = module.weight.shape
    if kind == "int4" and isinstance(module, Linear) and K % GROUP == 0:
        return {"weight": (N, K // 2), "factors": (N, K // GROUP), "scale": (N,)}
    return {"weight": (N, K), "scale": (N,)}


def build(tensors: dict[str, Tensor], dtype: torch.dtype, *, table: bool) -> nn.Module:
    """The module that ``stored_tensors`` stand for, computing in ``dtype``."""
    weight, scale, bias = tensors["weight"], tensors["scale"], tensors.get("bias")
    if table:
        return Int8Embedding(weight, scale, dtype)
    if "factors" in tensors:
        return Int4Linear(weight, tensors["factors"], scale, bias, dtype)
    return Int8Linear(weight, scale, bias)


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(AT_ONCE // rows.shape[1] // BLOCK, 1) * BLOCK)


def _kept(tensor: Tensor) -> nn.Parameter:
    """A parameter, so that it counts and moves as weights do."""
    return nn.Parameter(tensor, requires_grad=False)
