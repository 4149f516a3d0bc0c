"""Model folders with quantized weights, which load without quantizing again.

Tensors have the names of ``Transformer``'s parameters, such as ``blocks.0.attn.qkv.weight``; quantized ones are stored
as ``storage.blocks``. config.json is the original model's with a ``quantization_config`` whose ``quant_method`` is
"llmcli", so that other programs know that they cannot read the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replace_text, replacing
from llmcli.files.names import CONFIG, INDEX, WEIGHTS
from llmcli.files.safetensors import INTEGERS, TensorFile, write_tensors
from llmcli.model.config import ModelConfig
from llmcli.model.transformer import Transformer
from llmcli.storage.blocks import BLOCK
from llmcli.storage.finite import LoadNotes
from llmcli.storage.foreign_formats import BESIDE, METHOD, without_settings
from llmcli.storage.ggml import scales_of
from llmcli.storage.quantize import (
    Quantization,
    format_of,
    matrices,
    quantized_module,
    quantized_shape,
    quantized_weight,
    replace_module,
)
from llmcli.storage.tensors import dtype_for

BITS: dict[Quantization, int] = {"int8": 8, "int4": 4}
FORMATS: dict[Quantization, str] = {"int8": "q8_0", "int4": "q4_0"}
FLOATS = ("F32", "BF16", "F16")


def quantization_in(raw: Mapping[str, Any]) -> Quantization | None:
    """The quantization by ``save_quantized`` that a parsed config.json states; None if there is none.

    Raises LlmcliError if the bits, the group size or the block format are not supported.
    """
    settings = raw.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") != METHOD:
        return None
    for quantization in FORMATS:
        if all(settings.get(key) == value for key, value in _settings(quantization).items()):
            return quantization
    if "block_format" not in settings:
        raise LlmcliError(
            "config.json: the weights have the format of an earlier version of llmcli: quantization_config has no "
            "block_format",
            "quantize the original model again",
        )
    stated = ", ".join(f"{key} {json.dumps(settings.get(key))}" for key in ("bits", "group_size", "block_format"))
    raise LlmcliError(
        f"config.json: quantized weights with {stated} are not supported", "quantize the original model again"
    )


def _settings(quantization: Quantization) -> dict[str, str | int]:
    """The ``quantization_config`` of a model folder with quantized weights."""
    return {
        "quant_method": METHOD,
        "bits": BITS[quantization],
        "group_size": BLOCK,
        "block_format": FORMATS[quantization],
    }


def save_quantized(
    model: Transformer,
    quantization: Quantization,
    folder: Path,
    raw: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Quantize the model's weights into ``folder``, with ``raw`` as its config.json.

    ``progress`` receives the number of weights done and in total. Each file is written completely or not at all.
    Raises LlmcliError if the model is already quantized, or has NaN or infinite weights.
    """
    modules = dict(matrices(model))
    if not modules:
        raise usage_error("the weights are already quantized", "use the original model")
    done, total = 0, sum(module.weight.numel() for module in modules.values())
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors[f"{name}.weight"] = quantized_weight(name, module, quantization)
        bias = getattr(module, "bias", None)
        if bias is not None:
            tensors[f"{name}.bias"] = bias.detach()
        done += module.weight.numel()
        if progress is not None:
            progress(done, total)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in modules:
            tensors[name] = parameter.detach()
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as file:
        write_tensors(file, tensors, {"format": "pt"})
    replace_text(
        folder / CONFIG,
        json.dumps(
            {**without_settings(raw), "dtype": model.dtype_name, "quantization_config": _settings(quantization)},
            indent=2,
        )
        + "\n",
    )


def load_quantized(
    folder: Path,
    config: ModelConfig,
    quantization: Quantization,
    *,
    device: torch.device,
    dtype: torch.dtype | Callable[[torch.dtype, int], torch.dtype] | None,
    build: Callable[[ModelConfig], Transformer],
    progress: Callable[[int, int], None] | None = None,
    notes: LoadNotes,
) -> Transformer:
    """Load a model that ``save_quantized`` wrote, to compute in ``dtype``. Arguments as for ``Checkpoint.load``.

    Raises LlmcliError if the device is not the CPU, a file is damaged, or a tensor contains NaN or infinity or does not
    match config.json.
    """
    if device.type != "cpu":
        raise usage_error(f"quantized weights run on the CPU, not on {device.type}", kind="quantized-needs-cpu")
    file, config = find_quantized(folder, config)
    with torch.device("meta"):
        model = build(config)
    modules = dict(matrices(model))
    check_quantized(file, model, quantization)
    tensors = {name: file.viewed(entry) for name, entry in file.entries.items()}  # mapped if possible
    for name, tensor in tensors.items():
        format = format_of(name.removesuffix(".weight"), quantization)
        if not notes.finite(scales_of(tensor, format) if tensor.dtype == torch.uint8 else tensor):
            raise LlmcliError(f"{file.path}: tensor {name} contains NaN or infinity", "the file may be damaged")
    if not isinstance(dtype, torch.dtype):
        stored_dtype = dtype_of(tensors)
        size = sum(tensor.numel() * (1 if tensor.dtype == torch.uint8 else 4) for tensor in tensors.values())
        dtype = stored_dtype if dtype is None else dtype(stored_dtype, size)
    for number, (name, module) in enumerate(modules.items(), start=1):
        blocks, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias", None)
        bias = None if bias is None else bias.to(dtype)
        replace_module(model, name, quantized_module(name, module, blocks, bias, quantization, dtype))
        if progress is not None:
            progress(number, len(modules))
    model.fill_constants(dtype, device)
    for name, tensor in tensors.items():
        module_name, _, last = name.rpartition(".")
        value = tensor.to(dtype_for(name, dtype))
        setattr(model.get_submodule(module_name), last, nn.Parameter(value, requires_grad=False))
    return model.eval()


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of what is not quantized; float32 if there is nothing, as without norm weights and biases."""
    floats = {name: tensor.dtype for name, tensor in tensors.items() if tensor.is_floating_point()}
    return next(
        (dtype for name, dtype in floats.items() if dtype_for(name, torch.bfloat16) != torch.float32), torch.float32
    )


def find_quantized(folder: Path, config: ModelConfig) -> tuple[TensorFile, ModelConfig]:
    """The file of quantized weights, and the config, which is untied if a head is stored.

    Raises LlmcliError if the file is damaged.
    """
    file = TensorFile(folder / WEIGHTS, INTEGERS)
    tied = config.tie_word_embeddings and "head.weight" not in file.entries
    return file, replace(config, tie_word_embeddings=tied)


def check_quantized(file: TensorFile, model: Transformer, quantization: Quantization) -> None:
    """Check that a file of quantized weights has exactly the tensors of ``model``, which is not quantized.

    Raises LlmcliError if a tensor is missing, is unexpected, or has another shape or dtype.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    dtypes: dict[str, tuple[str, ...]] = dict.fromkeys(shapes, FLOATS)
    for name, module in matrices(model):
        shapes[f"{name}.weight"] = quantized_shape(name, module, quantization)
        dtypes[f"{name}.weight"] = ("U8",)
    found = {name: file.entries[name] for name in sorted(shapes.keys() & file.entries.keys())}
    faults = {
        "missing": sorted(shapes.keys() - file.entries.keys()),
        "unexpected": sorted(file.entries.keys() - shapes.keys()),
        "of the wrong shape": [
            f"{name} {list(entry.shape)} instead of {list(shapes[name])}"
            for name, entry in found.items()
            if entry.shape != shapes[name]
        ],
        "of the wrong dtype": [
            f"{name} {entry.dtype} instead of {' or '.join(dtypes[name])}"
            for name, entry in found.items()
            if entry.dtype not in dtypes[name]
        ],
    }
    problems = [f"{what}: {_first(names)}" for what, names in faults.items() if names]
    if problems:
        raise LlmcliError(
            f"{file.path}: the weights do not match config.json; tensors {'; '.join(problems)}",
            "config.json and the weights must come from the same model",
        )


def _first(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def copy_rest(folder: Path, out: Path) -> None:
    """Copy a model folder's other files, such as the tokenizer's; not config.json, the weights and their format."""
    for path in folder.iterdir():
        if not path.is_file() or path.name in (CONFIG, INDEX, *BESIDE):
            continue
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            with replacing(out / path.name) as copy, path.open("rb") as original:
                shutil.copyfileobj(original, copy)
