"""Quantised models on disk: rounded once, and then there at once.

The tensors have the transformer's own names, ``blocks.0.attn.qkv.weight``, with ``scale`` and in 4 bits
``factors`` beside a rounded weight. config.json is the model's own with a ``quantization_config`` of
``quant_method`` "llmcli", by which other programs see that they cannot read it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replacing
from llmcli.files.names import INDEX, WEIGHTS
from llmcli.files.safetensors import WHOLE_NUMBERS, TensorFile
from llmcli.model.config import ModelConfig
from llmcli.model.layers import Embedding
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import Kind, build, matrices, replace_module, rounded_parts, stored_tensors
from llmcli.storage.rounding import GROUP

METHOD = "llmcli"
BITS: dict[Kind, int] = {"int8": 8, "int4": 4}
FLOATS = ("F32", "BF16", "F16")


def kind_of(raw: Mapping[str, Any]) -> Kind | None:
    """How a parsed config.json says that ``save_quantized`` rounded the weights; None if it did not."""
    found = raw.get("quantization_config")
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return None
    for kind, bits in BITS.items():
        if found.get("bits") == bits and found.get("group_size") == GROUP:
            return kind
    raise LlmcliError(
        f"config.json: quantised to {found.get('bits')} bits in groups of {found.get('group_size')}",
        f"known are 8 or 4 bits in groups of {GROUP}",
    )


def save_quantized(
    model: Transformer,
    kind: Kind,
    folder: Path,
    raw: Mapping[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model rounded, and its config.json ``raw``. ``progress``: weights done, weights in all.

    Each file appears whole or not at all. Errors: weights that are no numbers, or rounded before.
    """
    places = dict(matrices(model))
    if not places:
        raise usage_error("the weights are quantised already", "give the model that they were rounded from")
    done, total = 0, sum(module.weight.numel() for module in places.values())
    tensors: dict[str, Tensor] = {}
    for name, module in places.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in stored_tensors(module, kind, name).items()}
        done += module.weight.numel()
        if progress is not None:
            progress(done, total)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] not in places:
            tensors[name] = parameter.detach()
    dtype = str(model.dtype).removeprefix("torch.")
    quantization = {"quant_method": METHOD, "bits": BITS[kind], "group_size": GROUP}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    with replacing(folder / "config.json") as temporary:
        described = {**raw, "dtype": dtype, "quantization_config": quantization}
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_quantized(
    folder: Path,
    config: ModelConfig,
    kind: Kind,
    *,
    device: torch.device,
    dtype: torch.dtype | Callable[[torch.dtype], torch.dtype] | None,
    progress: Callable[[int, int], None] | None = None,
) -> Transformer:
    """What ``save_quantized`` wrote, computing in ``dtype``; arguments and errors as of ``checkpoint.load``."""
    if device.type != "cpu":
        raise usage_error(f"quantised weights run on the CPU, not on {device.type}", "give --device cpu")
    file, config = find_quantized(folder, config)
    with torch.device("meta"):
        model = Transformer(config)
    places = dict(matrices(model))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    dtypes: dict[str, tuple[str, ...]] = dict.fromkeys(shapes, FLOATS)
    for name, module in places.items():
        del shapes[f"{name}.weight"]
        parts = rounded_parts(module, kind)
        shapes |= {f"{name}.{part}": shape for part, shape in parts.items()}
        dtypes |= {f"{name}.{part}": (dtype,) for part, dtype in _part_dtypes(parts).items()}
    _check(file, shapes, dtypes)
    tensors = {name: file.viewed(file.entries[name]) for name in shapes}  # mapped: those that are kept as they are
    if not isinstance(dtype, torch.dtype):
        kept = tensors["norm.weight"].dtype
        dtype = kept if dtype is None else dtype(kept)
    for number, (name, module) in enumerate(places.items(), start=1):
        parts = rounded_parts(module, kind)
        built = {part: tensors.pop(f"{name}.{part}") for part in parts}
        if "factors" in parts:
            built["weight"] = file.read(file.entries[f"{name}.weight"])  # to be packed, and forgotten
        bias = tensors.pop(f"{name}.bias", None)
        if bias is not None:
            built["bias"] = bias.to(dtype)
        replace_module(model, name, build(built, dtype, table=isinstance(module, Embedding)))
        if progress is not None:
            progress(number, len(places))
    for name, tensor in tensors.items():
        module_name, _, last = name.rpartition(".")
        setattr(model.get_submodule(module_name), last, nn.Parameter(tensor.to(dtype), requires_grad=False))
    return model.eval()


def find_quantized(folder: Path, config: ModelConfig) -> tuple[TensorFile, ModelConfig]:
    """The file of quantised weights, and the config with a head of its own if one is stored. Errors: a damaged file."""
    file = TensorFile(folder / WEIGHTS, WHOLE_NUMBERS)
    tied = config.tie_word_embeddings and "head.weight" not in file.entries  # a head of its own goes before config.json
    return file, replace(config, tie_word_embeddings=tied)


def _part_dtypes(parts: Mapping[str, Any]) -> dict[str, str]:
    """How safetensors writes the dtype of each of a module's ``rounded_parts``."""
    return {"weight": "U8", "factors": "I8", "scale": "F32"} if "factors" in parts else {"weight": "I8", "scale": "F32"}


def _check(file: TensorFile, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, tuple[str, ...]]) -> None:
    there = shapes.keys() & file.entries.keys()
    faults = {
        "missing": shapes.keys() - file.entries.keys(),
        "unexpected": file.entries.keys() - shapes.keys(),
        "of another shape": [name for name in there if file.entries[name].shape != shapes[name]],
        "of another dtype": [name for name in there if file.entries[name].dtype not in dtypes[name]],
    }
    told = [f"{what}: {', '.join(sorted(names)[:3])}" for what, names in faults.items() if names]
    if told:
        raise LlmcliError(
            f"{file.path}: the weights do not match config.json; tensors {'; '.join(told)}",
            "config.json and the weights must come from the same model",
        )


def copy_rest(folder: Path, out: Path) -> None:
    """Copy what else a model's folder holds, the tokenizer above all, but its weights."""
    for path in folder.iterdir():
        if not path.is_file() or path.name in ("config.json", INDEX):
            continue
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            with replacing(out / path.name) as temporary:
                shutil.copyfile(path, temporary)
