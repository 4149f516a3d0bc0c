"""Model folders with quantized weights, which load without quantizing again.

Tensors have the names of ``Transformer``'s parameters, such as ``blocks.0.attn.qkv.weight``, with a ``scale`` and, for
4 bits, ``factors`` next to a quantized weight. config.json is the original model's with a ``quantization_config`` whose
``quant_method`` is "llmcli", so that other programs know that they cannot read the weights.
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
from llmcli.model.layers import Embedding
from llmcli.model.transformer import Transformer
from llmcli.storage.finite import LoadNotes
from llmcli.storage.foreign_formats import METHOD
from llmcli.storage.quantize import (
    Quantization,
    matrices,
    quantized_module,
    quantized_shapes,
    replace_module,
    stored_tensors,
)
from llmcli.storage.quantized_tensors import GROUP

BITS: dict[Quantization, int] = {"int8": 8, "int4": 4}
FLOATS = ("F32", "BF16", "F16")


def quantization_in(raw: Mapping[str, Any]) -> Quantization | None:
    """The quantization by ``save_quantized`` that a parsed config.json states; None if there is none.

    Raises LlmcliError if the bits or the group size are not supported.
    """
    settings = raw.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") != METHOD:
        return None
    for quantization, bits in BITS.items():
        if settings.get("bits") == bits and settings.get("group_size") == GROUP:
            return quantization
    raise LlmcliError(
        f"config.json: {settings.get('bits')} bits in groups of {settings.get('group_size')} are not supported",
        f"supported: 8 or 4 bits in groups of {GROUP}",
    )


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
        tensors |= {f"{name}.{part}": tensor for part, tensor in stored_tensors(module, quantization, name).items()}
        done += module.weight.numel()
        if progress is not None:
            progress(done, total)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in modules:
            tensors[name] = parameter.detach()
    settings = {"quant_method": METHOD, "bits": BITS[quantization], "group_size": GROUP}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as file:
        write_tensors(file, tensors, {"format": "pt"})
    replace_text(
        folder / CONFIG,
        json.dumps({**raw, "dtype": model.dtype_name, "quantization_config": settings}, indent=2) + "\n",
    )


def load_quantized(
    folder: Path,
    config: ModelConfig,
    quantization: Quantization,
    *,
    device: torch.device,
    dtype: torch.dtype | Callable[[torch.dtype], torch.dtype] | None,
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
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    dtypes: dict[str, tuple[str, ...]] = dict.fromkeys(shapes, FLOATS)
    for name, module in modules.items():
        del shapes[f"{name}.weight"]
        part_shapes = quantized_shapes(module, quantization)
        shapes |= {f"{name}.{part}": shape for part, shape in part_shapes.items()}
        dtypes |= {f"{name}.{part}": (dtype,) for part, dtype in _part_dtypes(part_shapes).items()}
    _check(file, shapes, dtypes)
    tensors = {name: file.viewed(file.entries[name]) for name in shapes}  # mapped if possible
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not notes.finite(tensor):
            raise LlmcliError(f"{file.path}: tensor {name} contains NaN or infinity", "the file may be damaged")
    if not isinstance(dtype, torch.dtype):
        stored_dtype = tensors["norm.weight"].dtype
        dtype = stored_dtype if dtype is None else dtype(stored_dtype)
    for number, (name, module) in enumerate(modules.items(), start=1):
        parts = quantized_shapes(module, quantization)
        stored = {part: tensors.pop(f"{name}.{part}") for part in parts}
        if "factors" in parts:
            stored["weight"] = file.read(file.entries[f"{name}.weight"])  # read into memory, because it is repacked
        bias = tensors.pop(f"{name}.bias", None)
        if bias is not None:
            stored["bias"] = bias.to(dtype)
        replace_module(model, name, quantized_module(stored, dtype, table=isinstance(module, Embedding)))
        if progress is not None:
            progress(number, len(modules))
    for name, tensor in tensors.items():
        module_name, _, last = name.rpartition(".")
        setattr(model.get_submodule(module_name), last, nn.Parameter(tensor.to(dtype), requires_grad=False))
    return model.eval()


def find_quantized(folder: Path, config: ModelConfig) -> tuple[TensorFile, ModelConfig]:
    """The file of quantized weights, and the config, which is untied if a head is stored.

    Raises LlmcliError if the file is damaged.
    """
    file = TensorFile(folder / WEIGHTS, INTEGERS)
    tied = config.tie_word_embeddings and "head.weight" not in file.entries
    return file, replace(config, tie_word_embeddings=tied)


def _part_dtypes(parts: Mapping[str, Any]) -> dict[str, str]:
    """The dtype, as safetensors names it, of each of a module's ``quantized_shapes``."""
    return {"weight": "U8", "factors": "I8", "scale": "F32"} if "factors" in parts else {"weight": "I8", "scale": "F32"}


def _check(file: TensorFile, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, tuple[str, ...]]) -> None:
    """Raise LlmcliError unless the file has exactly the tensors in ``shapes``, each with one of its ``dtypes``."""
    found = shapes.keys() & file.entries.keys()
    faults = {
        "missing": shapes.keys() - file.entries.keys(),
        "unexpected": file.entries.keys() - shapes.keys(),
        "of the wrong shape": [name for name in found if file.entries[name].shape != shapes[name]],
        "of the wrong dtype": [name for name in found if file.entries[name].dtype not in dtypes[name]],
    }
    problems = [f"{what}: {', '.join(sorted(names)[:3])}" for what, names in faults.items() if names]
    if problems:
        raise LlmcliError(
            f"{file.path}: the weights do not match config.json; tensors {'; '.join(problems)}",
            "config.json and the weights must come from the same model",
        )


def copy_rest(folder: Path, out: Path) -> None:
    """Copy a model folder's other files, such as the tokenizer's; not config.json and not the weights."""
    for path in folder.iterdir():
        if not path.is_file() or path.name in (CONFIG, INDEX):
            continue
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            with replacing(out / path.name) as copy, path.open("rb") as original:
                shutil.copyfileobj(original, copy)
