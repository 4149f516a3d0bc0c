"""The formats of quantized weights that other programs write: how to recognize them, and which ones open."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.files.json import read_json
from llmcli.model.families.fields import wrong

METHOD = "llmcli"  # the ``quant_method`` that ``llmcli quantize`` writes
DEFAULT_BLOCK = (128, 128)  # rows and columns that share an 8-bit float's scale (DeepSeek-AI 2024)

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
    "mxfp8": "MXFP8",
    "nvfp4": "NVFP4",
    "quanto": "Quanto",
    "quark": "Quark",
    "spqr": "SpQR",
    "vptq": "VPTQ",
}
# Files that state the format, and its ``quant_method``.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
# Ends of tensor names that only one format has, for folders whose config.json does not state the format.
MARKS = (
    ("GPTQ", r"\.g_idx"),
    ("AWQ", r"\.qzeros"),
    ("compressed-tensors", r"\.weight_packed"),
    ("bitsandbytes", r"\.SCB|\.(absmax|quant_map)|\.quant_state\.bitsandbytes__\w+"),
    ("MLX", r"\.biases"),
    ("HQQ", r"\.W_q"),
    ("AQLM", r"\.codebooks"),
    ("EXL2", r"\.q_weight"),
    ("EXL3", r"\.trellis"),
    ("Quanto", r"\.weight\._data"),
    ("NVFP4", r"\.weight_scale_2"),
    ("MXFP4", r"_blocks"),
    ("VPTQ", r"\.centroids\.weight"),
    ("GPTQ", r"\.qweight"),
)


def quantization_settings(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a parsed config.json says about quantized weights, wherever it says so; None if it says nothing."""
    text = raw.get("text_config")
    for place in (raw, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            settings = place.get(key)
            if isinstance(settings, Mapping) and settings:
                return settings
    return None


def check_format(raw: Mapping[str, Any]) -> None:
    """Raise LlmcliError unless llmcli opens weights in the format that a parsed config.json states."""
    settings = quantization_settings(raw)
    name = None if settings is None else _unsupported(settings)
    if name is not None:
        raise unsupported(name)


def check_beside(folder: Path) -> None:
    """Raise LlmcliError if a file next to config.json, as old programs write it, states such a format."""
    for file, method in BESIDE.items():
        if (folder / file).is_file():
            settings = {"quant_method": method, **read_json(folder / file)}
            raise unsupported(_unsupported(settings) or METHODS[method])


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


def scale_block(raw: Mapping[str, Any]) -> tuple[int, int]:
    """The rows and columns of 8-bit floats that share an entry of a scale matrix.

    Raises LlmcliError if the sizes are invalid.
    """
    settings = quantization_settings(raw) or {}
    key, block = "weight_block_size", settings.get("weight_block_size")
    for weights in _groups(settings):
        key = "block_structure"
        group = [1, weights.get("group_size")] if weights.get("strategy") == "group" else None
        block = block or weights.get(key) or group
    if block is None:
        return DEFAULT_BLOCK
    if isinstance(block, str) and re.fullmatch(r"\d+x\d+", block):  # as old versions of compressed-tensors write it
        block = [int(size) for size in block.split("x")]
    if not isinstance(block, list) or len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
        raise wrong(key, block, "two whole numbers above 0")
    return block[0], block[1]


def _unsupported(settings: Mapping[str, Any]) -> str | None:
    """The format's name if llmcli does not open it."""
    method = settings.get("quant_method")
    method = method.lower() if isinstance(method, str) else method
    if method in (METHOD, "fp8", "fbgemm_fp8"):
        return None
    if method == "compressed-tensors":
        return _unsupported_groups(settings)
    if method == "modelopt" or (method is None and "quant_algo" in settings):
        nested = settings.get("quantization")
        algorithm = str((nested if isinstance(nested, Mapping) else settings).get("quant_algo"))
        return None if algorithm.startswith("FP8") else f"ModelOpt {algorithm}"
    if method is None and any(str(key).startswith(("load_in_", "bnb_", "llm_int8")) for key in settings):
        return _unsupported({"quant_method": "bitsandbytes", **settings})
    if method is None and {"group_size", "bits"} <= settings.keys():
        return f"MLX ({settings['bits']} bits)"
    if method is None:
        return "a method that config.json does not name"
    name = METHODS.get(str(method), str(settings["quant_method"]))
    bits = settings.get("bits", settings.get("w_bit"))
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else bits
    return f"{name} ({bits} bits)" if type(bits) is int else name


def _unsupported_groups(settings: Mapping[str, Any]) -> str | None:
    """``_unsupported`` for compressed-tensors, whose groups of modules can differ."""
    for weights in _groups(settings):
        kind, bits = weights.get("type"), weights.get("num_bits")
        if (kind, bits) != ("float", 8):
            return f"compressed-tensors {kind}{bits} ({settings.get('format')})"
    sparsity = settings.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        return f"compressed-tensors {sparsity['format']}"
    return None


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ``weights`` of each of compressed-tensors' groups."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else []
    weights = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return [entry for entry in weights if isinstance(entry, Mapping)]
