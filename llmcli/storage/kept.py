"""Matrices that stay in blocks in memory: of GGUF files, and of other formats where blocks have the same weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from llmcli.model.families.rules import Rule
from llmcli.model.layers import Embedding
from llmcli.model.transformer import Transformer
from llmcli.storage.finite import LoadNotes
from llmcli.storage.ggml import scales_of
from llmcli.storage.quantize import QuantizedEmbedding, QuantizedLinear, QuantizedStack, matrices, replace_module
from llmcli.storage.tensors import WeightFiles


def kept(weights: WeightFiles, model: Transformer, rules: Iterable[Rule]) -> list[Rule]:
    """The matrices of ``model`` that stay in blocks on a CPU: those for which ``weights`` have blocks."""
    modules = {f"{name}.weight" for name, _ in matrices(model)}
    return [
        rule
        for rule in rules
        if rule.target in modules and all(weights.block_format(source) is not None for source in rule.sources)
    ]


def keep_blocks(
    weights: WeightFiles, model: Transformer, rules: Iterable[Rule], dtype: torch.dtype, notes: LoadNotes
) -> set[str]:
    """Put the matrices that ``kept`` names into the model as blocks, to compute in ``dtype``.

    Returns the parameters that they fill. Raises LlmcliError if a scale is NaN or infinite.
    """
    modules, rules = dict(matrices(model)), kept(weights, model, rules)
    for rule in rules:
        name = rule.target.removesuffix(".weight")
        columns, parts = modules[name].weight.shape[1], []
        for source in rule.sources:
            blocks, format = weights.blocks(source), weights.block_format(source)
            assert format is not None
            if not notes.finite(scales_of(blocks, format)):
                raise weights.not_finite(rule, dtype)
            parts.append((blocks, columns, format))
        if isinstance(modules[name], Embedding):
            replace_module(model, name, QuantizedEmbedding(*parts[0]))
            continue
        linear = [QuantizedLinear(*part, None, dtype) for part in parts]
        replace_module(model, name, linear[0] if len(linear) == 1 else QuantizedStack(linear))
    return {rule.target for rule in rules}
