"""The same model on other devices and in other dtypes: compares the logits, and the text that it generates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmcli.explain.forward_pass import tolerance
from llmcli.explain.report import relative_error, vocab_entry
from llmcli.explain.verification.consistency import continuation_length, generate, prompt
from llmcli.explain.verification.proof import Divergence, Finding, Plan, Skipped, difference, largest_difference
from llmcli.explain.verification.subject import Subject, one_pass
from llmcli.generation.filters import Temperature
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantization_of

# Weights are rounded to the dtype before they are quantized, and some then round to another level.
QUANTIZED_TOLERANCES = {"int8": 1e-1, "int4": 3e-1}
DEVICE_NAMES = {"cpu": "the CPU", "cuda": "the GPU", "mps": "the GPU"}


@dataclass(frozen=True)
class Output:
    """A model's logits of the text, fp32 [T, V], and its greedy continuation, each token with its logits [V]."""

    logits: Tensor
    continuation: list[tuple[int, Tensor]]


def output_of(subject: Subject, model: Transformer) -> Output:
    """Run ``model`` over the subject's text."""
    logits = subject.logits if model is subject.model else one_pass(model, subject.ids)
    return Output(logits, generate(subject, Temperature(0.0), model))


def device_plans(subject: Subject) -> list[Plan]:
    """Return a plan for each other device, or one plan that is skipped if there is none."""
    own = subject.model.device.type
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    others = [name for name, is_available in available.items() if is_available and name != own]

    def compare_with(device: str) -> Finding:
        if quantization_of(subject.model) is not None:
            raise Skipped("quantized weights run on the CPU only")
        theirs = output_of(subject, subject.opened(device, subject.model.dtype_name).model)
        ours = output_of(subject, subject.model)
        return Finding(
            difference(theirs.logits, ours.logits),
            subject.tolerance,
            continuations_diverge(subject, theirs, ours),
            largest_difference(theirs.logits, ours.logits),
        )

    def no_device() -> Finding:
        raise Skipped("this machine has no accelerator")

    means = f"{{}} computes the same logits as {DEVICE_NAMES[own]}"
    if not others:
        return [Plan(f"{own} = accelerator", means.format("another device"), no_device)]
    return [Plan(f"{own} = {name}", means.format(DEVICE_NAMES[name]), partial(compare_with, name)) for name in others]


def dtype_plans(subject: Subject) -> list[Plan]:
    """Return plans that compare bfloat16, and the dtype that the model runs in, with float32."""
    names = dict.fromkeys(["bfloat16", subject.model.dtype_name])
    device = subject.model.device.type

    def compare_with_float32(name: str) -> Finding:
        # The reference runs first, and only its numbers are kept, so that at most two models are in memory.
        exact = output_of(subject, subject.opened(device, "float32").model)
        other = subject.opened(device, name).model
        ours, allowed = output_of(subject, other), tolerance(other)
        if (quantization := quantization_of(other)) is not None:
            allowed = max(allowed, QUANTIZED_TOLERANCES.get(quantization, 0.0))
        divergence = continuations_diverge(subject, ours, exact)
        largest = largest_difference(ours.logits, exact.logits)
        margin = 0.0 if divergence is None else relative_error(divergence.margin, float(exact.logits.abs().max()))
        return Finding(margin if math.isfinite(largest) else math.inf, allowed, divergence, largest)

    return [
        Plan(
            f"{name} ~ float32",
            f"over {continuation_length(subject)} tokens the texts agree, or diverge only at a near tie",
            partial(compare_with_float32, name),
        )
        for name in names
        if name != "float32"
    ]


def continuations_diverge(subject: Subject, ours: Output, reference: Output) -> Divergence | None:
    """Return where two continuations first differ; up to there both have the same context."""
    start = len(prompt(subject))
    for n, ((our, _), (their, logits)) in enumerate(zip(ours.continuation, reference.continuation, strict=True)):
        if our != their:
            tokenizer = subject.loaded.tokenizer
            margin = float(logits[their] - logits[our])
            return Divergence(start + n - 1, vocab_entry(tokenizer, their), vocab_entry(tokenizer, our), margin)
    return None
