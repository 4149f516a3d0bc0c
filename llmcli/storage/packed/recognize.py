"""Which stored tensors hold a packed matrix, and how it is unpacked: by their names and the folder's settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from llmcli.errors import LlmcliError
from llmcli.files.safetensors import INTEGERS as PLAIN_INTEGERS
from llmcli.files.safetensors import Entry, TensorFile
from llmcli.model.families.fields import field, wrong
from llmcli.model.families.rules import Source
from llmcli.storage.foreign_formats import MLX_BITS, check_supported, groups_of, method_of, scale_block, weights_of
from llmcli.storage.packed import bitsandbytes, floats, gptq, integers, scaled
from llmcli.storage.packed.parts import EIGHT_BITS, FLOATS, PackedFile, PackedMatrix, Parts
from llmcli.storage.patterns import first_match

# A tensor's name: that of the module, and which of the module's tensors it is.
NAME = re.compile(r"(.+?)\.((?:weight\.)?(?:quant_state\.)?[^.]+)")
DTYPES = {
    **PLAIN_INTEGERS,
    "BOOL": torch.bool,
    "I16": torch.int16,
    "I32": torch.int32,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E8M0": torch.float8_e8m0fnu,
}
MAX_GROUP = 2**20  # columns

Stored = tuple[TensorFile, Entry]


def find_packed(
    tensors: Mapping[str, Stored], sources: Iterable[Source], settings: Mapping[str, Any] | None
) -> tuple[dict[str, PackedFile], set[str]]:
    """The packed matrices among ``tensors``, by the names of the ``sources`` that they are, and the tensors used.

    ``tensors`` have the names of the rules. ``settings`` say how the weights are quantized; None if nothing says so.
    Raises LlmcliError if the settings state a format that llmcli does not open, or the tensors of a matrix do not fit
    together or contradict the settings.
    """
    modules: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        match = NAME.fullmatch(name)
        if match is not None:
            modules.setdefault(match[1], {})[match[2]] = stored
    recognizer, files = _Recognizer(settings, modules), _Files()
    packed: dict[str, PackedFile] = {}
    used: set[str] = set()
    for source in sources:
        module, _, end = source.name.rpartition(".")
        found = modules.get(module, {})
        ends = [key for key in recognizer.ends(found, end) if key in found]
        if ends:
            if settings is not None and not packed:
                check_supported(settings)
            matrix = recognizer.matrix(Parts(module, {key: files.wider(found[key]) for key in ends}), end)
            transposed = source.transposed and matrix.by_output and len(matrix.shape) == 2
            packed[source.name] = PackedFile(source.name, matrix, transposed=transposed)
            used.update(f"{module}.{key}" for key in ends)
    return packed, used


class _Recognizer:
    """Recognizes packed matrices in a folder with these settings."""

    def __init__(self, settings: Mapping[str, Any] | None, modules: Mapping[str, Mapping[str, Stored]]) -> None:
        self.stated = settings is not None
        self.settings = settings or {}
        self.method = method_of(self.settings)
        self.layout = str(self.settings.get("packing_format")).rpartition(":")[2]
        self._groups = self._matched(modules) if self.method == "compressed-tensors" else {}

    def ends(self, found: Mapping[str, Stored], end: str) -> tuple[str, ...]:
        """The ends of the tensors' names that hold ``end`` of a module; none if it is not packed."""
        dtype = found[end][1].dtype if end in found else ""
        if end != "weight":
            return (end,) if dtype in EIGHT_BITS else ()
        for mark, ends in _BY_MARK.items():
            if mark in found and (dtype or mark not in ("SCB", bitsandbytes.ABSMAX)):
                return ends
        if dtype == "U32" and "scales" in found:
            return ("weight", "scales", "biases", "qbiases")
        if dtype == "U8" and "weight_scale" in found:
            return ("weight", "weight_scale", "weight_scale_2")
        in_8_bits = dtype in EIGHT_BITS or (dtype == "I8" and self.stated)
        return ("weight", *scaled.SCALES, scaled.ZERO_POINT) if in_8_bits else ()

    def matrix(self, parts: Parts, end: str) -> PackedMatrix:
        """The packed matrix with the tensors of ``ends``. Raises LlmcliError if they do not fit together."""
        if "qweight" in parts:
            return self._by_columns(parts)
        if "weight_packed" in parts:
            return self._compressed(parts)
        if "weight_blocks" in parts:
            return floats.mxfp4(parts, "weight_blocks", "weight_scales")
        if "SCB" in parts:
            return scaled.llm_int8(parts)
        if bitsandbytes.ABSMAX in parts:
            return bitsandbytes.four_bits(parts)
        if "scales" in parts:
            return self._mlx(parts)
        if parts.dtype(end) == "U8":
            if "weight_scale_2" in parts:
                return floats.nvfp4(parts, "weight", "weight_scale", overall="weight_scale_2")
            return floats.mxfp4(parts, "weight", "weight_scale")
        block = scale_block(self.settings, self._groups.get(parts.name, {}))
        return scaled.scaled(parts, end, block=block, required=self.stated)

    def _by_columns(self, parts: Parts) -> PackedMatrix:
        """A matrix by GPTQ or AWQ, which have tensors of the same names."""
        if "weight" in parts:
            raise parts.fault("weight", f"is stored twice, also as {parts.name}.qweight")
        size = self._group_size()
        words, rows = (parts.matrix(end, (*gptq.WORDS, *FLOATS))[1] for end in ("qweight", "scales"))
        if self.method == "awq" or self.layout == "auto_awq" or (words != rows and words * gptq.PER_WORD == rows):
            return gptq.awq(parts, group_size=size)
        bits = self.settings.get("bits")
        layout = self.settings.get("checkpoint_format") or self.settings.get("format")
        return gptq.gptq(
            parts,
            bits=bits if type(bits) is int else None,
            group_size=size,
            act_order=self.settings.get("desc_act") is True,
            zero_offset=0 if layout == "gptq_v2" else 1,
            varies=any(self.settings.get(key) for key in ("dynamic", "extra_config")),
        )

    def _group_size(self) -> int | None:
        key = "q_group_size" if "q_group_size" in self.settings else "group_size"
        size = self.settings.get(key)
        if size is not None and (type(size) is not int or not (size == -1 or 0 < size <= MAX_GROUP)):
            raise wrong(key, size, "a whole number above 0, or -1")
        return size

    def _compressed(self, parts: Parts) -> PackedMatrix:
        """A matrix by compressed-tensors: of integers or of 4-bit floats."""
        if parts.dtype("weight_packed") == "U8":
            if "weight_global_scale" not in parts:
                return floats.mxfp4(parts, "weight_packed", "weight_scale")
            return floats.nvfp4(parts, "weight_packed", "weight_scale", overall="weight_global_scale", divides=True)
        weights = self._groups.get(parts.name, {})
        bits = field(weights, "num_bits", 0)
        if not 1 <= bits <= 8:
            raise parts.fault("weight_packed", "belongs to no group of config.json that states its bits")
        return integers.pack_quantized(parts, bits=bits, symmetric=field(weights, "symmetric", True))

    def _mlx(self, parts: Parts) -> PackedMatrix:
        """A matrix by MLX, whose settings may differ from those of other matrices."""
        name = re.sub(r"\.experts\.\d+\.", ".switch_mlp.", parts.stored_name("weight"))  # one name for all experts
        own = self.settings.get(name)
        settings = {**self.settings, **own} if isinstance(own, Mapping) else self.settings
        mode = settings.get("mode", "affine")
        if mode == "mxfp4":
            return floats.mxfp4(parts, "weight", "scales")
        if mode == "nvfp4":
            return floats.nvfp4(parts, "weight", "scales")
        if mode == "mxfp8":
            return floats.mxfp8(parts)
        bits, size = field(settings, "bits", 4), field(settings, "group_size", 64)
        if mode != "affine" or bits not in MLX_BITS or not 0 < size <= MAX_GROUP:
            raise parts.fault("weight", f"is quantized by MLX with mode {mode!r}, bits {bits} and group_size {size}, "
                              "which is not supported")  # fmt: skip
        biases = "qbiases" if self.method == "metal" else "biases"  # transformers' name for them
        return integers.affine(parts, biases, bits=bits, group_size=size)

    def _matched(self, modules: Mapping[str, Mapping[str, Stored]]) -> dict[str, Mapping[str, Any]]:
        """How compressed-tensors stores the weights of each module, by the targets of its groups.

        A target is a module's name, "re:" and a regular expression for its beginning, or a class of modules.
        """
        groups = groups_of(self.settings)
        every = [weights_of(group) for group in groups]
        if len(groups) < 2:
            return dict.fromkeys(modules, every[0]) if every else {}
        targets = [
            (str(target), number) for number, group in enumerate(groups) for target in group.get("targets") or ()
        ]
        patterns = [t[3:] if t.startswith("re:") else f"{re.escape(t)}$" for t, _ in targets]
        names = [Parts(module, found).stored_name(next(iter(found))) for module, found in modules.items()]
        try:
            indices = first_match(patterns, names)
        except ValueError as error:
            raise LlmcliError(f"config.json: targets has a regular expression that is {error}", "correct it") from None
        of_class = next((every[number] for target, number in targets if target == "Linear"), {})
        return {
            module: of_class if index is None else every[targets[index][1]]
            for module, index in zip(modules, indices, strict=True)
        }


_BY_MARK = {
    "qweight": ("qweight", "qzeros", "scales", "g_idx", "weight"),
    "weight_packed": (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
        "weight_global_scale",
    ),
    "weight_blocks": ("weight_blocks", "weight_scales"),
    "SCB": ("weight", "SCB", "weight_format"),
    bitsandbytes.ABSMAX: (
        "weight",
        bitsandbytes.ABSMAX,
        bitsandbytes.TABLE,
        bitsandbytes.NESTED,
        bitsandbytes.NESTED_TABLE,
        *(bitsandbytes.STATE + kind for kind in bitsandbytes.KINDS),
    ),
}


class _Files:
    """The weight files, with the dtypes of packed matrices."""

    def __init__(self) -> None:
        self._files: dict[int, TensorFile] = {}

    def wider(self, stored: Stored) -> Stored:
        """The tensor in a file that supports its dtype."""
        file, entry = stored
        return self._files.setdefault(id(file), file.supporting(DTYPES)), entry
