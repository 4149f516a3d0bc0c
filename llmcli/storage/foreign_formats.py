"""The formats of quantized weights that other programs write: how to recognize them, and which ones open."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.model.families.fields import wrong

METHOD = "llmcli"  # the ``quant_method`` that ``llmcli quantize`` writes
DEFAULT_BLOCK = (128, 128)  # rows and columns that share an 8-bit float's scale (DeepSeek-AI 2024)

MX_BLOCK = (1, 32)  # the same in MXFP8 (OCP Microscaling 1.0)

# ``quant_method`` -> the format's name. A method that is not listed is its own name.
METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "metal": "Metal",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "Quark",
    "spqr": "SpQR",
    "vptq": "VPTQ",
}
SETTINGS = ("quantization_config", "compression_config", "quantization")  # keys of config.json
# Files that state the format, and its ``quant_method``.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# Ends of tensor names that only one format has, for folders whose config.json does not state the format.
MARKS = (
    ("HQQ", r"\.W_q"),
    ("AQLM", r"\.codebooks"),
    ("EXL2", r"\.q_weight"),
    ("EXL3", r"\.trellis"),
    ("Quanto", r"\.weight\._data"),
    ("VPTQ", r"\.centroids\.weight"),
    ("EETQ", r"\.weight_scales"),
    ("Marlin", r"\.(B|workspace)"),
)
GPTQ_BITS = (2, 3, 4, 8)
MLX_BITS = (2, 3, 4, 5, 6, 8)
MLX_MODES = ("mxfp4", "nvfp4", "mxfp8")  # besides "affine"
COMPRESSED = (  # the ``format`` of compressed-tensors
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
    "dense",
)


def quantization_settings(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a parsed config.json says about quantized weights, wherever it says so; None if it says nothing."""
    text = raw.get("text_config")
    for place in (raw, text if isinstance(text, Mapping) else {}):
        for key in SETTINGS:
            settings = place.get(key)
            if isinstance(settings, Mapping) and settings:
                return settings
    return None


def check_format(raw: Mapping[str, Any]) -> None:
    """Raise LlmcliError unless llmcli opens weights in the format that a parsed config.json states."""
    settings = quantization_settings(raw)
    if settings is not None:
        check_supported(settings)


def stated_settings(folder: Path, raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """``quantization_settings``, or those of a file next to config.json, as old programs write it."""
    settings = quantization_settings(raw)
    if settings is not None:
        return settings
    for file, method in BESIDE.items():
        if (folder / file).is_file():
            return {"quant_method": method, **read_json(folder / file)}
    return None


def without_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed config.json for weights that are no longer quantized."""
    places = {key: value for key, value in raw.items() if key not in SETTINGS}
    text = raw.get("text_config")
    if isinstance(text, Mapping):
        places["text_config"] = {key: value for key, value in text.items() if key not in SETTINGS}
    return places


def check_supported(settings: Mapping[str, Any]) -> None:
    """Raise LlmcliError unless llmcli opens weights in the format that ``stated_settings`` state."""
    name = _unsupported(settings)
    if name is not None:
        raise unsupported(name)


def unsupported(name: str) -> LlmcliError:
    """The error for weights in a format that llmcli does not open."""
    return LlmcliError(
        f"llmcli cannot open weights quantized by {name}", "get the model in bfloat16, float16, float32 or fp8"
    )


def format_of(names: Collection[str]) -> str | None:
    """The format of quantized weights whose tensors have these names; None if no known format has such names."""
    for name, ending in MARKS:
        if any(re.search(f"(?:{ending})$", stored) for stored in names):
            return name
    return None


def method_of(settings: Mapping[str, Any]) -> str | None:
    """The ``quant_method`` in lower case, also of programs that do not state it; None if it is not known."""
    method = settings.get("quant_method")
    if method is not None:
        return str(method).lower()
    if "quant_algo" in settings or isinstance(settings.get("quantization"), Mapping):
        return "modelopt"
    if any(str(key).startswith(("load_in_", "bnb_", "llm_int8")) for key in settings):
        return "bitsandbytes"
    return "mlx" if {"group_size", "bits"} <= settings.keys() else None


def quantizes_activations(settings: Mapping[str, Any]) -> bool:
    """Whether the settings ask for quantized inputs of matrix products, in addition to quantized weights."""
    method = method_of(settings)
    if method == "compressed-tensors":
        return any(isinstance(group.get("input_activations"), Mapping) for group in groups_of(settings))
    if method == "modelopt":
        return _algorithm(settings) in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "MIXED_PRECISION")
    return method in ("fp8", "fbgemm_fp8", "mxfp8") or (
        method == "bitsandbytes" and settings.get("load_in_8bit") is True
    )


def scale_block(settings: Mapping[str, Any], weights: Mapping[str, Any]) -> tuple[int, int]:
    """The rows and columns of 8-bit numbers that share an entry of a scale matrix.

    ``weights`` are the settings of one of compressed-tensors' groups, or empty. Raises LlmcliError if the sizes are
    invalid.
    """
    key, block = "weight_block_size", settings.get("weight_block_size")
    if weights:
        key = "block_structure"
        group = [1, weights.get("group_size")] if weights.get("strategy") == "group" else None
        block = block or weights.get(key) or group
    if block is None:
        return MX_BLOCK if method_of(settings) == "mxfp8" else DEFAULT_BLOCK
    if isinstance(block, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", block):  # as old versions of compressed-tensors
        block = [int(size) for size in block.split("x")]
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise wrong(key, block, "two whole numbers above 0")
    return block[0], block[1]


def groups_of(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """compressed-tensors' groups of modules."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else []
    return [group for group in found if isinstance(group, Mapping)]


def weights_of(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """How one of compressed-tensors' groups stores weights; empty if it does not say."""
    weights = group.get("weights")
    return weights if isinstance(weights, Mapping) else {}


def _unsupported(settings: Mapping[str, Any]) -> str | None:
    """The format's name if llmcli does not open it."""
    method = method_of(settings)
    if method in (METHOD, "fp8", "fbgemm_fp8", "mxfp4", "mxfp8"):
        return None
    if method is None:
        return "a method that config.json does not name"
    bits = settings.get("bits", settings.get("w_bit"))
    check = _CHECKS.get(method)
    if check is not None:
        return check(settings, bits)
    name = METHODS.get(method, str(settings["quant_method"]))
    return f"{name} ({bits} bits)" if type(bits) is int else name


def _unsupported_gptq(settings: Mapping[str, Any], bits: object) -> str | None:
    if bits not in GPTQ_BITS:
        return f"GPTQ ({bits} bits)" if type(bits) is int else "GPTQ with unknown bits"
    layout = "marlin" if settings.get("is_marlin_format") else settings.get("checkpoint_format") or "gptq"
    return None if layout in ("gptq", "gptq_v2") else f"GPTQ ({layout})"


def _unsupported_awq(settings: Mapping[str, Any], bits: object) -> str | None:
    if bits != 4:
        return f"AWQ ({bits} bits)" if type(bits) is int else "AWQ with unknown bits"
    layout = str(settings.get("version") or "gemm").lower()
    return None if layout == "gemm" else f"AWQ ({layout})"


def _unsupported_auto_round(settings: Mapping[str, Any], bits: object) -> str | None:
    layout = str(settings.get("packing_format")).rpartition(":")[2]
    if layout in ("auto_gptq", "auto_awq"):
        check = _unsupported_gptq if layout == "auto_gptq" else _unsupported_awq
        return None if check({}, bits) is None else f"AutoRound ({bits} bits)"
    return f"AutoRound ({layout})"


def _unsupported_modelopt(settings: Mapping[str, Any], bits: object) -> str | None:
    nested = settings.get("quantization")
    layers = (nested if isinstance(nested, Mapping) else settings).get("quantized_layers")
    algorithms = [_algorithm(settings)]
    if algorithms == ["MIXED_PRECISION"] and isinstance(layers, Mapping):
        algorithms = [_algorithm(layer) for layer in layers.values() if isinstance(layer, Mapping)]
    wrong = [name for name in algorithms if not name.startswith("FP8") and name != "NVFP4"]
    return f"ModelOpt {wrong[0]}" if wrong else None


def _unsupported_bitsandbytes(settings: Mapping[str, Any], bits: object) -> str | None:
    kind = settings.get("bnb_4bit_quant_type", "nf4")
    return f"bitsandbytes ({kind})" if settings.get("load_in_4bit") and kind not in ("nf4", "fp4") else None


def _unsupported_mlx(settings: Mapping[str, Any], bits: object) -> str | None:
    mode = settings.get("mode", "affine")
    if mode != "affine":
        return None if mode in MLX_MODES else f"MLX ({mode})"
    name = METHODS.get(str(method_of(settings)), "MLX")
    return None if bits in MLX_BITS else f"{name} ({bits} bits)"


def _unsupported_compressed(settings: Mapping[str, Any], bits: object) -> str | None:
    """``_unsupported`` for compressed-tensors, whose groups of modules can differ."""
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        return f"compressed-tensors {sparsity['format']}"
    if settings.get("transform_config"):
        return "compressed-tensors with transforms of activations"
    for group in groups_of(settings):
        layout, weights = group.get("format") or settings.get("format"), weights_of(group)
        kind, bits = weights.get("type"), weights.get("num_bits")
        known = kind in (None, "int") or (kind == "float" and bits in (4, 8))
        if weights and not (known and type(bits) is int and 1 <= bits <= 8 and layout in (None, *COMPRESSED)):
            return f"compressed-tensors {kind}{bits} ({layout})"
    return None


def _algorithm(settings: Mapping[str, Any]) -> str:
    """ModelOpt's name of the format."""
    nested = settings.get("quantization")
    return str((nested if isinstance(nested, Mapping) else settings).get("quant_algo"))


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], object], str | None]] = {
    "gptq": _unsupported_gptq,
    "awq": _unsupported_awq,
    "auto-round": _unsupported_auto_round,
    "modelopt": _unsupported_modelopt,
    "bitsandbytes": _unsupported_bitsandbytes,
    "compressed-tensors": _unsupported_compressed,
    "metal": _unsupported_mlx,
    "mlx": _unsupported_mlx,
}
