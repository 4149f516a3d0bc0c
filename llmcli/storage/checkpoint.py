"""A model folder <-> ``Transformer``: strict both ways, one tensor in memory beside the model at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llmcli.engine.tensor_parallel.process_group import Ranks
from llmcli.engine.tensor_parallel.transformer import SplitTransformer
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replacing
from llmcli.files.json import read_json
from llmcli.files.names import WEIGHTS
from llmcli.model.config import ModelConfig
from llmcli.model.families import FAMILIES, family_of
from llmcli.model.families.rules import Rule
from llmcli.model.transformer import Transformer
from llmcli.storage.partition import Share
from llmcli.storage.quantized_checkpoint import METHOD, kind_of, load_quantized
from llmcli.storage.slices import read_share
from llmcli.storage.tensors import Stored

Progress = Callable[[int, int], None]  # bytes done, bytes in all
QUANTIZED = ("fp8", "compressed-tensors", METHOD)  # quant_method of checkpoints with 8-bit floats, and of our own


def read_config(folder: Path) -> ModelConfig:
    """The validated config of a model folder. Errors: no config.json, not JSON, unknown family, bad values."""
    return _config(folder, read_json(folder / "config.json"))


def _config(folder: Path, raw: Mapping[str, Any]) -> ModelConfig:
    quantization = raw.get("quantization_config")
    if isinstance(quantization, Mapping) and quantization.get("quant_method") not in QUANTIZED:
        raise LlmcliError(
            f"{folder}: the weights are quantised ({quantization.get('quant_method')}), which is not supported",
            "get the model in bfloat16, float16, float32 or fp8",
        )
    return family_of(raw).parse(raw)


def is_quantized(folder: Path) -> bool:
    """Whether the folder holds weights as ``llmcli quantize`` writes them."""
    return kind_of(read_json(folder / "config.json")) is not None


def load(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype | Callable[[torch.dtype], torch.dtype] | None = None,
    adapter: Path | None = None,
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Transformer:
    """The model in ``folder``, ready to run. ``dtype`` may be a function of the stored one; None keeps that.

    The stored dtype is the token embedding's, which stands for all weights. ``adapter`` is the folder
    of a LoRA to merge. What ``llmcli quantize`` wrote is read as it is. With ``ranks`` it is this rank's
    share, of which alone is read.

    On a CPU, what lies in the files as it is needed is mapped: read when first used, shared with
    other processes. Errors name the file and the tensor: missing, unexpected or misshapen tensors,
    damaged files.
    """
    raw = read_json(folder / "config.json")
    config = _config(folder, raw)
    kind = kind_of(raw)
    if kind is not None:
        if adapter is not None:
            raise usage_error("an adapter cannot be merged into quantised weights", "merge it first, then quantise")
        if ranks is not None:
            raise usage_error("quantised weights are not split among ranks", "give the model in bfloat16")
        return load_quantized(folder, config, kind, device=device, dtype=dtype, progress=progress)
    stored, config, rules = find_stored(folder, config, adapter, scaled="quantization_config" in raw)
    stored.check_adapter(rules, tied=config.tie_word_embeddings)
    with torch.device("meta"):
        model = Transformer(config)
    parameters = dict(model.named_parameters())
    assert {rule.target for rule in rules} == parameters.keys()
    for rule in rules:
        stored.check_shape(rule, parameters[rule.target].shape)
    if not isinstance(dtype, torch.dtype):
        kept = stored.dtype(rules[0].parts[0].source)
        dtype = kept if dtype is None else dtype(kept)
    shapes = {name: parameter.shape for name, parameter in parameters.items()}
    if ranks is None:
        _fill(model, rules, stored, lambda rule: stored.parameter(rule, shapes[rule.target], dtype, device), progress)
        return model.eval()
    share = Share(config, ranks.rank, ranks.size)
    with torch.device("meta"):
        split = SplitTransformer(share, ranks)
    read = partial(read_share, stored, share=share, dtype=dtype)
    _fill(split, rules, stored, lambda rule: read(rule, shape=shapes[rule.target]).to(device), progress)
    return split.eval()


def _fill(
    model: Transformer,
    rules: list[Rule],
    stored: Stored,
    parameter: Callable[[Rule], Tensor],
    progress: Progress | None,
) -> None:
    """Give a model on the meta device its parameters, one after the other."""
    done, total = 0, sum(stored.nbytes(rule) for rule in rules)
    for rule in rules:
        module, _, name = rule.target.rpartition(".")
        setattr(model.get_submodule(module), name, torch.nn.Parameter(parameter(rule), requires_grad=False))
        done += stored.nbytes(rule)
        if progress is not None:
            progress(done, total)


def find_stored(
    folder: Path, config: ModelConfig, adapter: Path | None = None, *, scaled: bool
) -> tuple[Stored, ModelConfig, list[Rule]]:
    """Where the folder keeps each parameter; the config with a head of its own if one is stored, and its rules.

    ``scaled`` as of ``Stored``. Errors: missing or unexpected tensors, damaged files.
    """
    family = FAMILIES[config.model_type]
    stored = Stored(folder, family, adapter, scaled=scaled)
    rules = family.rules(config)
    if config.tie_word_embeddings and stored.has_own_head(rules[0].parts[0].source):
        config = replace(config, tie_word_embeddings=False)  # as transformers does
        rules = family.rules(config)
    stored.check_names(rules, tied=config.tie_word_embeddings)
    return stored, config, rules


def save(model: Transformer, folder: Path, described: Mapping[str, Any], *, dtype: torch.dtype) -> None:
    """Write model.safetensors in the family's own layout, and ``described`` as config.json.

    Each file appears whole or not at all.
    """
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for rule in FAMILIES[model.config.model_type].rules(model.config):
        stacked = parameters[rule.target].detach().to("cpu", dtype)
        for part, rows in zip(rule.parts, torch.split(stacked, [part.rows for part in rule.parts]), strict=True):
            tensors[part.source] = part.in_file(rows, tuple(rows.shape[1:])).contiguous().clone()
    described = {**described, "dtype": str(dtype).removeprefix("torch.")}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
