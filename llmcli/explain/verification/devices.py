"""The same model on other devices and in other dtypes: its logits, and the text it writes, beside each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llmcli.explain.forward_pass import tolerance
from llmcli.explain.report import relative_error, vocab_entry
from llmcli.explain.verification.consistency import continued, prompt, write
from llmcli.explain.verification.proof import Finding, Parting, Plan, Skipped, difference, largest
from llmcli.explain.verification.subject import Subject, dtype_name, one_pass
from llmcli.generation.filters import Temperature
from llmcli.model.transformer import Transformer
from llmcli.storage.quantize import quantization_of

DEVICES = {"cpu": "the CPU", "cuda": "the GPU", "mps": "the GPU"}


@dataclass(frozen=True)
class Run:
    """A model's logits of the text, fp32 [T, V], and the likeliest tokens it goes on with, each with its logits [V]."""

    logits: Tensor
    written: list[tuple[int, Tensor]]


def run(subject: Subject, model: Transformer) -> Run:
    logits = subject.whole if model is subject.model else one_pass(model, subject.ids)
    return Run(logits, write(subject, Temperature(0.0), model))


def devices(subject: Subject) -> list[Plan]:
    """A plan for each other device there is, or one that says that there is none."""
    own = subject.model.device.type
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    others = [name for name, is_there in there.items() if is_there and name != own]

    def on(device: str) -> Finding:
        if quantization_of(subject.model) is not None:
            raise Skipped("rounded weights run on the CPU alone")
        theirs = run(subject, subject.opened(device, dtype_name(subject.model)).model)
        ours = run(subject, subject.model)
        return Finding(
            difference(theirs.logits, ours.logits),
            subject.allowed,
            first_parting(subject, theirs, ours),
            largest(theirs.logits, ours.logits),
        )

    def nowhere() -> Finding:
        raise Skipped("no accelerator here")

    means = f"the logits computed on {{}} are those of {DEVICES[own]}"
    if not others:
        return [Plan(f"{own} = accelerator", means.format("another device"), nowhere)]
    return [Plan(f"{own} = {name}", means.format(DEVICES[name]), partial(on, name)) for name in others]


def dtypes(subject: Subject) -> list[Plan]:
    """bfloat16, and the dtype that the model runs in, beside float32."""
    names = dict.fromkeys(["bfloat16", dtype_name(subject.model)])
    device = subject.model.device.type

    def beside(name: str) -> Finding:
        # The reference first, and of it only the numbers: so there are never more than two models in memory.
        exact = run(subject, subject.opened(device, "float32").model)
        other = subject.opened(device, name).model
        ours, allowed = run(subject, other), tolerance(other)
        parted, far = first_parting(subject, ours, exact), largest(ours.logits, exact.logits)
        margin = 0.0 if parted is None else relative_error(parted.margin, float(exact.logits.abs().max()))
        return Finding(margin if math.isfinite(far) else math.inf, allowed, parted, far)

    return [
        Plan(
            f"{name} ~ float32",
            f"of {continued(subject)} tokens written in both, the first to differ was nearly a tie",
            partial(beside, name),
        )
        for name in names
        if name != "float32"
    ]


def first_parting(subject: Subject, ours: Run, reference: Run) -> Parting | None:
    """Where the texts that two models write first differ, which is behind the same context in both."""
    start = len(prompt(subject))
    for n, ((one, _), (two, logits)) in enumerate(zip(ours.written, reference.written, strict=True)):
        if one != two:
            tokenizer = subject.loaded.tokenizer
            margin = float(logits[two] - logits[one])
            return Parting(start + n - 1, vocab_entry(tokenizer, two), vocab_entry(tokenizer, one), margin)
    return None
