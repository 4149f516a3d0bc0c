"""Random matrices in the formats of other programs, packed number by number, with their exact values.

Each packer draws the stored numbers, scales and zero points of a matrix [rows, columns], and returns the tensors that
a file has, by the ends of their names, and the values that the format's specification gives, in float64. Nothing is
unpacked to get them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

FP4 = [sign * size for sign in (1, -1) for size in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight numbers a word has at its lowest bits, the next bits, ...
Packed = tuple[dict[str, Tensor], Tensor]


def words_of(numbers: Iterable[int], bits: int) -> list[int]:
    """The numbers one after the other, from the lowest bit on, in words of 32 bits with a sign."""
    stream = "".join(format(number, f"0{bits}b")[::-1] for number in numbers)
    words = [int(stream[i : i + 32][::-1], 2) for i in range(0, len(stream), 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def packed_rows(numbers: Tensor, bits: int) -> Tensor:
    """``words_of`` each row: int32 [rows, words]."""
    return torch.tensor([words_of(row, bits) for row in numbers.tolist()], dtype=torch.int32)


def halves(numbers: Tensor, *, upper_first: bool = False) -> Tensor:
    """Two 4-bit numbers per byte: uint8 [rows, columns / 2]."""
    first, second = numbers[:, ::2], numbers[:, 1::2]
    return (first * 16 + second if upper_first else first + 16 * second).to(torch.uint8)


@dataclass
class Draw:
    """Random numbers for a matrix of this shape."""

    rows: int
    columns: int
    generator: torch.Generator

    def numbers(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def matrix(self, low: int, high: int) -> Tensor:
        return self.numbers((self.rows, self.columns), low, high)

    def scales(self, *shape: int, dtype: torch.dtype = torch.float16, size: float = 0.02) -> Tensor:
        return (size * (0.5 + torch.rand(shape, generator=self.generator))).to(dtype)

    def groups(self, size: int) -> tuple[int, Tensor]:
        """The number of groups of columns, and the group of each column."""
        index = torch.arange(self.columns) // size
        return int(index[-1]) + 1, index

    def shuffled(self, index: Tensor) -> Tensor:
        return index[torch.randperm(len(index), generator=self.generator)]


def gptq(
    draw: Draw, *, bits: int = 4, group: int = 16, order: bool = False, symmetric: bool = False, offset: int = 1
) -> Packed:
    group = draw.columns if group == -1 else group
    count, index = draw.groups(group)
    index = draw.shuffled(index) if order else index
    numbers = draw.matrix(0, 2**bits)
    zeros = draw.numbers((draw.rows, count), offset, 2**bits + offset)
    zeros = torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
    scales = draw.scales(draw.rows, count, size=0.16 / 2**bits)
    values = (numbers - zeros[:, index]) * scales[:, index].double()
    stored = {
        "qweight": packed_rows(numbers, bits).T.contiguous(),
        "qzeros": packed_rows((zeros - offset).T, bits),
        "scales": scales.T.contiguous(),
        "g_idx": index.int(),
    }
    return stored, values


def awq(draw: Draw, *, group: int = 16) -> Packed:
    group = draw.columns if group == -1 else group
    count, index = draw.groups(group)
    numbers, zeros = draw.matrix(0, 16), draw.numbers((draw.rows, count), 0, 16)
    scales = draw.scales(draw.rows, count, size=0.01)
    values = (numbers - zeros[:, index]) * scales[:, index].double()

    def packed(transposed: Tensor) -> Tensor:
        octets = transposed.view(len(transposed), -1, 8)[:, :, AWQ_ORDER]
        return packed_rows(octets.reshape(len(transposed), -1), 4)

    stored = {"qweight": packed(numbers.T), "qzeros": packed(zeros.T), "scales": scales.T.contiguous()}
    return stored, values


def pack_quantized(
    draw: Draw, *, bits: int = 4, group: int = 16, symmetric: bool = True, order: bool = False
) -> Packed:
    count, index = draw.groups(draw.columns if group == -1 else group)
    index = draw.shuffled(index) if order else index
    half = 2 ** (bits - 1)
    numbers = draw.matrix(-half, half)
    zeros = draw.numbers((draw.rows, count), -half, half)
    scales = draw.scales(draw.rows, count, dtype=torch.bfloat16, size=0.08 / half)
    stored = {
        "weight_packed": packed_rows(numbers + half, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([draw.rows, draw.columns]),
    }
    if order:
        stored["weight_g_idx"] = index.int()
    if symmetric:
        zeros = torch.zeros_like(zeros)
    else:
        stored["weight_zero_point"] = packed_rows((zeros + half).T, bits).T.contiguous()
    return stored, (numbers - zeros[:, index]) * scales[:, index].double()


def int_quantized(draw: Draw, *, symmetric: bool = True, group: int = -1) -> Packed:
    count, index = draw.groups(draw.columns if group == -1 else group)
    numbers, zeros = draw.matrix(-128, 128), draw.numbers((draw.rows, count), -128, 128)
    scales = draw.scales(draw.rows, count, dtype=torch.bfloat16, size=0.0005)
    stored = {"weight": numbers.to(torch.int8), "weight_scale": scales}
    if symmetric:
        zeros = torch.zeros_like(zeros)
    else:
        stored["weight_zero_point"] = zeros.to(torch.int8)
    return stored, (numbers - zeros[:, index]) * scales[:, index].double()


def fp8(draw: Draw, *, end: str = "weight_scale", block: tuple[int, int] | None = None, powers: bool = False) -> Packed:
    """8-bit floats; ``block`` None is a scale for each row, ``powers`` are scales that are powers of two."""
    weight = torch.randn(draw.rows, draw.columns, generator=draw.generator).to(torch.float8_e4m3fn)
    high, wide = block or (1, draw.columns)
    shape = (math.ceil(draw.rows / high), math.ceil(draw.columns / wide))
    if powers:
        exponents = draw.numbers(shape, 120, 126)
        scales, stored = 2.0 ** (exponents - 127).double(), exponents.to(torch.uint8)
    else:
        stored = draw.scales(*shape, dtype=torch.float32, size=0.1)
        scales = stored.double()
    spread = scales[torch.arange(draw.rows) // high][:, torch.arange(draw.columns) // wide]
    return {"weight": weight, end: stored}, weight.double() * spread


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip


def four_bits(
    draw: Draw, *, kind: str = "nf4", block: int = 64, nested: bool = False, storage: str = "uint8"
) -> Packed:
    """bitsandbytes' NF4, or FP4 with any table; blocks run across rows."""
    table = torch.tensor(NF4 if kind == "nf4" else [value / 12 for value in range(-8, 8)])
    numbers = draw.numbers((1, draw.rows * draw.columns), 0, 16)
    blocks = math.ceil(numbers.numel() / block)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": [draw.rows, draw.columns]
    }  # fmt: skip
    stored = {"weight.quant_map": table}
    if nested:
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.12}
        codes = draw.numbers((blocks,), 0, 256)
        nested_table = torch.linspace(-1, 1, 256)
        sizes = draw.scales(math.ceil(blocks / 4), dtype=torch.float32, size=0.05)
        stored |= {"weight.absmax": codes.to(torch.uint8), "weight.nested_absmax": sizes}
        stored["weight.nested_quant_map"] = nested_table
        # Each step is rounded to float32.
        largest = nested_table[codes] * sizes[torch.arange(blocks) // 4] + torch.tensor(0.12)
    else:
        largest = stored["weight.absmax"] = draw.scales(blocks, dtype=torch.float32, size=0.12)
    stored[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode())).to(torch.uint8)
    stored["weight"] = halves(numbers, upper_first=True).view(-1).view(getattr(torch, storage)).view(-1, 1)
    values = table[numbers[0]].double() * largest[torch.arange(numbers.numel()) // block].double()
    return stored, values.view(draw.rows, draw.columns)


def llm_int8(draw: Draw) -> Packed:
    numbers, largest = draw.matrix(-127, 128), draw.scales(draw.rows, dtype=torch.float32, size=0.1)
    stored = {"weight": numbers.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    # In bitsandbytes' steps, each rounded to float32.
    return stored, (numbers * largest[:, None] * (1 / 127)).double()


def mxfp4(draw: Draw, *, layout: str = "weight_blocks") -> Packed:
    numbers, exponents = draw.matrix(0, 16), draw.numbers((draw.rows, draw.columns // 32), 119, 124)
    values = torch.tensor(FP4).double()[numbers] * 2.0 ** (exponents - 127).double().repeat_interleave(32, 1)
    data, scales = halves(numbers), exponents.to(torch.uint8)
    if layout == "mlx":
        return {"weight": packed_rows(numbers, 4).view(torch.uint32), "scales": scales}, values
    if layout == "weight_packed":
        return {"weight_packed": data, "weight_scale": scales}, values
    return {layout: data.view(draw.rows, -1, 16), layout.replace("blocks", "scales"): scales}, values


def nvfp4(draw: Draw, *, layout: str) -> Packed:
    numbers = draw.matrix(0, 16)
    scales = draw.scales(draw.rows, draw.columns // 16, dtype=torch.float8_e4m3fn, size=30.0)
    overall = torch.tensor(0.0011)
    data, factors = halves(numbers), scales.float()
    if layout == "modelopt":
        stored = {"weight": data, "weight_scale": scales, "weight_scale_2": overall}
        factors = factors * overall  # rounded to float32
    elif layout == "compressed":
        stored = {"weight_packed": data, "weight_scale": scales, "weight_global_scale": (1 / overall).view(1)}
        factors = factors / (1 / overall)
    else:
        scales = draw.scales(draw.rows, draw.columns // 16, dtype=torch.float8_e4m3fn, size=0.04)
        stored = {"weight": packed_rows(numbers, 4).view(torch.uint32), "scales": scales.view(torch.uint8)}
        factors = scales.float()
    return stored, torch.tensor(FP4).double()[numbers] * factors.double().repeat_interleave(16, 1)


def affine(draw: Draw, *, bits: int = 4, group: int = 32, end: str = "biases") -> Packed:
    count, index = draw.groups(group)
    numbers = draw.matrix(0, 2**bits)
    scales = draw.scales(draw.rows, count, dtype=torch.bfloat16, size=0.16 / 2**bits)
    biases = -draw.scales(draw.rows, count, dtype=torch.bfloat16, size=0.08)
    stored = {"weight": packed_rows(numbers, bits).view(torch.uint32), "scales": scales, end: biases}
    return stored, numbers * scales[:, index].double() + biases[:, index].double()


def mxfp8(draw: Draw) -> Packed:
    stored, values = fp8(draw, end="scales", block=(1, 32), powers=True)
    return {"weight": stored["weight"].view(torch.uint32), "scales": stored["scales"]}, values


@dataclass(frozen=True)
class Case:
    """How all matrices of a model are packed, and the settings in its config.json."""

    pack: Callable[[Draw], Packed]
    settings: dict[str, Any]
    format: str
    quantizes_activations: bool = False


def gptq_case(*, bits: int = 4, group: int = 16, **options: Any) -> Case:
    offset = 0 if options.get("checkpoint_format") == "gptq_v2" else 1
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, **options}
    order, symmetric = options.get("desc_act", False), options.get("sym", False)
    pack = partial(gptq, bits=bits, group=group, order=order, symmetric=symmetric, offset=offset)
    return Case(pack, settings, f"GPTQ ({bits} bits)")


def compressed(kind: str, bits: int, layout: str, *, inputs: bool = False, **weights: Any) -> dict[str, Any]:
    """The settings of compressed-tensors as it writes them."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **weights}
    activations = {"num_bits": 8, "type": kind, "dynamic": True, "strategy": "token"} if inputs else None
    group = {"input_activations": activations, "output_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False, "symmetric": True},
    }


_NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
CASES: dict[str, Case] = {
    "gptq-2": gptq_case(bits=2, desc_act=True),
    "gptq-3": gptq_case(bits=3, desc_act=False, group=-1),
    "gptq-4": gptq_case(desc_act=True, sym=True),
    "gptq-4-v2": gptq_case(group=24, desc_act=False, checkpoint_format="gptq_v2"),  # does not divide 64
    "gptq-8": gptq_case(bits=8, group=32, desc_act=True),
    "auto-round-gptq": Case(
        gptq,
        {"quant_method": "auto-round", "bits": 4, "group_size": 16, "packing_format": "auto_round:auto_gptq"},
        "GPTQ (4 bits)",
    ),
    "auto-round-awq": Case(
        awq,
        {"quant_method": "auto-round", "bits": 4, "group_size": 16, "packing_format": "auto_round:auto_awq"},
        "AWQ (4 bits)",
    ),
    "awq": Case(awq, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "GEMM"}, "AWQ (4 bits)"),
    "awq-all": Case(partial(awq, group=-1), {"quant_method": "awq", "bits": 4, "group_size": -1}, "AWQ (4 bits)"),
    "compressed-int4": Case(
        pack_quantized, compressed("int", 4, "pack-quantized", strategy="group"), "compressed-tensors (int4)"
    ),
    "compressed-int4-zeros-order": Case(
        partial(pack_quantized, symmetric=False, order=True),
        compressed("int", 4, "pack-quantized", strategy="group", symmetric=False, actorder="group"),
        "compressed-tensors (int4)",
    ),
    "compressed-int8-packed": Case(
        partial(pack_quantized, bits=8, group=-1),
        compressed("int", 8, "pack-quantized", strategy="channel"),
        "compressed-tensors (int8)",
    ),
    "compressed-int3-packed": Case(
        partial(pack_quantized, bits=3, group=-1, symmetric=False),
        compressed("int", 3, "pack-quantized", strategy="channel", symmetric=False),
        "compressed-tensors (int3)",
    ),
    "compressed-int8": Case(
        int_quantized, compressed("int", 8, "int-quantized", strategy="channel", inputs=True), "int8", True
    ),
    "compressed-int8-zeros": Case(
        partial(int_quantized, symmetric=False, group=16),
        compressed("int", 8, "naive-quantized", strategy="group", group_size=16, symmetric=False),
        "int8",
    ),
    "compressed-fp8": Case(
        fp8, compressed("float", 8, "float-quantized", strategy="channel", inputs=True), "fp8", True
    ),
    "compressed-mxfp8": Case(
        partial(fp8, block=(1, 32), powers=True),
        compressed("float", 8, "mxfp8-quantized", strategy="group", group_size=32),
        "fp8",
    ),
    "compressed-mxfp4": Case(
        partial(mxfp4, layout="weight_packed"), compressed("float", 4, "mxfp4-pack-quantized", group_size=32), "MXFP4"
    ),
    "compressed-nvfp4": Case(
        partial(nvfp4, layout="compressed"), compressed("float", 4, "nvfp4-pack-quantized", group_size=16), "NVFP4"
    ),
    "fp8-blocks": Case(
        partial(fp8, end="weight_scale_inv", block=(32, 48)),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 48]},
        "fp8",
        True,
    ),
    "fbgemm": Case(fp8, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fp8", True),
    "mxfp8": Case(
        partial(fp8, end="weight_scale_inv", block=(1, 32), powers=True), {"quant_method": "mxfp8"}, "fp8", True
    ),
    "modelopt-nvfp4": Case(
        partial(nvfp4, layout="modelopt"), {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4", True
    ),
    "modelopt-mixed": Case(
        partial(nvfp4, layout="modelopt"),
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"a": {"quant_algo": "NVFP4", "group_size": 16}, "b": {"quant_algo": "FP8"}},
        },
        "NVFP4",
        True,
    ),
    "nf4": Case(four_bits, _NF4, "bitsandbytes (NF4)"),
    "nf4-nested": Case(partial(four_bits, nested=True, block=128, storage="float32"), _NF4, "bitsandbytes (NF4)"),
    "fp4": Case(partial(four_bits, kind="fp4", block=256), _NF4 | {"bnb_4bit_quant_type": "fp4"}, "bitsandbytes (FP4)"),
    "int8": Case(llm_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes (int8)", True),
    "mxfp4": Case(mxfp4, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "MXFP4"),
    **{
        f"mlx-{bits}": Case(
            partial(affine, bits=bits), {"group_size": 32, "bits": bits, "mode": "affine"}, f"MLX ({bits} bits)"
        )
        for bits in (2, 3, 4, 5, 6, 8)
    },
    "metal": Case(
        partial(affine, end="qbiases"), {"quant_method": "metal", "bits": 4, "group_size": 32}, "MLX (4 bits)"
    ),
    "mlx-mxfp4": Case(partial(mxfp4, layout="mlx"), {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "MXFP4"),
    "mlx-nvfp4": Case(partial(nvfp4, layout="mlx"), {"group_size": 16, "bits": 4, "mode": "nvfp4"}, "NVFP4"),
    "mlx-mxfp8": Case(mxfp8, {"group_size": 32, "bits": 8, "mode": "mxfp8"}, "MXFP8"),
}
