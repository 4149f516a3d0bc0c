"""Weights in 8 or 4 bits: half or a third of the bytes to read per token, for a small loss of quality.

Activations are quantized to 8 bits, each token's by its own largest value (Yao et al. 2022, ZeroQuant), so that a
token's result still depends only on itself and the tokens before it. Embedding tables, and a head tied to one, always
have 8 bits; norms, biases, routers and learned positions are not quantized.
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
from llmcli.storage.finite import is_finite
from llmcli.storage.quantized_tensors import GROUP, MIN_SCALE, from_nibbles, nibbles, to_int4, to_int8

Quantization = Literal["int8", "int4"]

ROW_BLOCK = 64  # rows that torch's 4-bit kernel packs together
FEW_TOKENS = 64  # up to this many, that kernel is faster than unpacking the weights
CHUNK = 2**21  # weights quantized or unpacked at a time: they fit into the processor's cache
_int4_product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu
_pack: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu


class Int8Linear(nn.Module):
    """A ``Linear`` with int8 weights [out, in] and one scale per row, fp32 [out]."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.scale, self.bias = _kept(weight), _kept(scale), None if bias is None else _kept(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = product(x, self.weight.t(), self.scale)
        return y if self.bias is None else y + self.bias

    def dense(self, part: slice) -> Tensor:
        """See ``Linear.dense``."""
        return self.weight[part] * self.scale[part].unsqueeze(-1)


class Int8Embedding(nn.Module):
    """An ``Embedding`` with int8 rows [V, C] and one scale per row, fp32 [V]; rows are returned in ``dtype``."""

    def __init__(self, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.scale, self.dtype = _kept(weight), _kept(scale), dtype

    def forward(self, ids: Tensor) -> Tensor:
        return (self.weight[ids] * self.scale[ids].unsqueeze(-1)).to(self.dtype)

    def unembed(self, x: Tensor) -> Tensor:
        """See ``Embedding.unembed``."""
        return product(x, self.weight.t(), self.scale)


class Int4Linear(nn.Module):
    """A ``Linear`` with 4-bit weights, given as nibbles [out, in / 2], factors [out, in / GROUP] and scale [out].

    They are kept in the layout of torch's 4-bit kernel, which multiplies few tokens. For many tokens, blocks of rows
    are unpacked to 8 bits one after the other, in a fraction of the time that the products take.
    """

    def __init__(self, pairs: Tensor, factors: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = len(pairs), 2 * pairs.shape[1]
        missing = -len(pairs) % ROW_BLOCK
        factors = F.pad(factors, (0, 0, 0, missing))
        self.packed = _kept(torch.empty(len(pairs) + missing, pairs.shape[1], dtype=torch.uint8))
        start = 0
        for piece in _pieces(pairs):  # in place: only one piece at a time takes additional memory
            done = packed(from_nibbles(piece))
            self.packed[start : start + len(done)] = done
            start += len(done)
        self.factors = _kept(factors.t().contiguous())  # [groups, N]
        self.scale, self.bias = _kept(scale), None if bias is None else _kept(bias)
        self.scales_and_zeros = _kept(torch.zeros(*self.factors.shape, 2, dtype=dtype))  # [groups, N, 2]
        self.scales_and_zeros[..., 0] = self.factors * F.pad(scale, (0, missing))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            y = self._few(x.view(1, -1)).view(-1)
        else:
            rows = x.reshape(-1, self.in_features)
            y = self._many(rows) if len(rows) > FEW_TOKENS and knows_layout() else self._few(rows)
            y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def _few(self, rows: Tensor) -> Tensor:
        """The product [n, out] of rows [n, in], without the bias, by torch's 4-bit kernel."""
        y: Tensor = _int4_product(rows, self.packed, GROUP, self.scales_and_zeros)
        return y if y.shape[1] == self.out_features else y[:, : self.out_features].contiguous()

    def _many(self, rows: Tensor) -> Tensor:
        """The product [n, out] of rows [n, in], quantized to 8 bits, without the bias."""
        codes, size = to_int8(rows)
        step = max(CHUNK // self.in_features // ROW_BLOCK, 1) * ROW_BLOCK
        parts = [torch._int_mm(codes, self.rows(start, start + step)) for start in range(0, len(self.packed), step)]
        return (torch.cat(parts, dim=-1)[:, : self.out_features] * self.scale * size).to(rows.dtype)

    def dense(self, part: slice) -> Tensor:
        """See ``Linear.dense``."""
        if not knows_layout():
            units = torch.eye(self.in_features, dtype=self.scales_and_zeros.dtype)
            return self._few(units).t()[part].float()
        start, end, _ = part.indices(self.out_features)
        first = start // ROW_BLOCK * ROW_BLOCK
        rows = self.rows(first, -(-end // ROW_BLOCK) * ROW_BLOCK).t()[start - first : end - first]
        return rows * self.scale[start:end].unsqueeze(-1)

    def rows(self, start: int, end: int) -> Tensor:
        """Weights of rows start .. end-1, which are whole blocks, in units of their scale: int8 [in, rows]."""
        codes = unpacked(self.packed[start:end])  # [blocks, in, ROW_BLOCK]
        blocks, K, _ = codes.shape
        factors = self.factors[:, start:end].view(-1, blocks, 1, ROW_BLOCK).transpose(0, 1)  # [blocks, groups, 1, ..]
        codes.view(blocks, -1, GROUP, ROW_BLOCK).mul_(factors)
        return codes.transpose(0, 1).reshape(K, blocks * ROW_BLOCK)


def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [..., K], quantized to int8 per vector, times int8 weight [K, N] and its scale [N]: [..., N]."""
    if x.dim() == 1:  # a single vector, whose own scale can be a plain number
        size = max(float(x.abs().max()), MIN_SCALE) / 127
        codes = x.to(torch.float32, copy=True).mul_(1 / size).round_().to(torch.int8)
        return (torch._int_mm(codes.view(1, -1), weight).view(-1) * scale).mul_(size).to(x.dtype)
    codes, sizes = to_int8(x.reshape(-1, x.shape[-1]))
    return (torch._int_mm(codes, weight) * scale * sizes).to(x.dtype).view(*x.shape[:-1], -1)


def packed(codes: Tensor) -> Tensor:
    """Numbers from -8 to 7 [N, K] in the layout of torch's 4-bit kernel, padded to whole blocks: uint8 [.., K / 2]."""
    whole = F.pad(codes, (0, 0, 0, -len(codes) % ROW_BLOCK))
    result: Tensor = _pack(whole.int() + 8, 1)
    return result


def unpacked(packs: Tensor) -> Tensor:
    """The numbers in packed blocks [N, K / 2]: int8 [N / ROW_BLOCK, K, ROW_BLOCK].

    A byte holds the numbers of a row and of the row half a block further down.
    """
    N, half = packs.shape
    signed = (packs ^ 0x88).view(torch.int8).view(N // ROW_BLOCK, 2 * half, ROW_BLOCK // 2)
    return torch.cat(((signed << 4) >> 4, signed >> 4), dim=-1)


@lru_cache(maxsize=1)
def knows_layout() -> bool:
    """Whether ``unpacked`` inverts ``packed`` on this machine: torch's layout is undocumented and varies."""
    codes = torch.arange(ROW_BLOCK * GROUP).view(ROW_BLOCK, GROUP).remainder(13).sub(6).to(torch.int8)
    return torch.equal(unpacked(packed(codes))[0], codes.t())


def quantize(
    model: Transformer, quantization: Quantization, progress: Callable[[int, int], None] | None = None
) -> None:
    """Quantize a model's matrices and embedding tables in place.

    ``progress`` receives the number of weights done and in total. Raises LlmcliError if the model is not on the CPU, is
    already quantized, or has NaN or infinite weights.
    """
    if model.device.type != "cpu":
        raise usage_error(f"quantized weights run on the CPU, not on {model.device.type}", kind="quantized-needs-cpu")
    modules = list(matrices(model))
    if not modules:
        raise usage_error("the weights are already quantized", kind="already-quantized")
    done, total = 0, sum(module.weight.numel() for _, module in modules)
    for name, module in modules:
        tensors = stored_tensors(module, quantization, name)
        replace_module(model, name, quantized_module(tensors, model.dtype, table=isinstance(module, Embedding)))
        done += module.weight.numel()
        if progress is not None:
            progress(done, total)


def matrices(model: Transformer) -> Iterator[tuple[str, Linear | Embedding]]:
    """The modules of a model that can be quantized, with their names; none if it is already quantized."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (Linear, Embedding)) and name != "positions" and not name.endswith(".router"):
            yield name, module


def quantization_of(model: Transformer) -> Quantization | None:
    """How a model is quantized: int4 if any matrix has 4 bits; None if it is not quantized."""
    if any(True for _ in matrices(model)):
        return None
    return "int4" if any(isinstance(module, Int4Linear) for module in model.modules()) else "int8"


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the model's submodule ``name``."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def stored_tensors(module: Linear | Embedding, quantization: Quantization, name: str) -> dict[str, Tensor]:
    """The tensors that store a quantized module: weight, scale, factors for 4 bits, and the bias if it has one.

    Raises LlmcliError, which names the parameter ``name``.weight, if a weight is NaN or infinite.
    """
    weight = module.weight.detach()
    tensors: dict[str, Tensor] = {}
    if not is_finite(weight):
        raise LlmcliError(f"{name}.weight contains NaN or infinity", "the model cannot be quantized")
    if "factors" in quantized_shapes(module, quantization):
        codes, factors, scales = zip(*(to_int4(piece) for piece in _pieces(weight)), strict=True)
        tensors["weight"], tensors["factors"] = nibbles(torch.cat(codes)), torch.cat(factors)
        tensors["scale"] = torch.cat(scales).view(-1)
    else:
        codes, scales = zip(*(to_int8(piece) for piece in _pieces(weight)), strict=True)
        tensors["weight"], tensors["scale"] = torch.cat(codes), torch.cat(scales).view(-1)
    if isinstance(module, Linear) and module.bias is not None:
        tensors["bias"] = module.bias.detach()
    return tensors


def quantized_shapes(module: Linear | Embedding, quantization: Quantization) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's ``stored_tensors``, except the bias."""
    N, K = module.weight.shape
    if quantization == "int4" and isinstance(module, Linear) and K % GROUP == 0:
        return {"weight": (N, K // 2), "factors": (N, K // GROUP), "scale": (N,)}
    return {"weight": (N, K), "scale": (N,)}


def quantized_module(tensors: dict[str, Tensor], dtype: torch.dtype, *, table: bool) -> nn.Module:
    """The module stored as ``tensors`` (see ``stored_tensors``), which computes in ``dtype``."""
    weight, scale, bias = tensors["weight"], tensors["scale"], tensors.get("bias")
    if table:
        return Int8Embedding(weight, scale, dtype)
    if "factors" in tensors:
        return Int4Linear(weight, tensors["factors"], scale, bias, dtype)
    return Int8Linear(weight, scale, bias)


def _pieces(rows: Tensor) -> tuple[Tensor, ...]:
    """The rows in whole blocks of about ``CHUNK`` weights."""
    return torch.split(rows, max(CHUNK // rows.shape[1] // ROW_BLOCK, 1) * ROW_BLOCK)


def _kept(tensor: Tensor) -> nn.Parameter:
    """A parameter, so that the tensor is counted and moved like other weights."""
    return nn.Parameter(tensor, requires_grad=False)
