"""A converted or quantized file against its original: tokens, chat template, config, weights and logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import LlmcliError
from llmcli.explain.verification.proof import (
    Finding,
    Plan,
    Skipped,
    difference,
    first_divergence,
    fraction_different,
    largest_difference,
)
from llmcli.explain.verification.subject import Subject, one_pass
from llmcli.generation.distribution import kl_divergence
from llmcli.generation.loaded import LoadedModel, read_checkpoint
from llmcli.model.transformer import Transformer
from llmcli.storage.headers import read_headers
from llmcli.storage.quantize import QuantizedMatrix, QuantizedStack
from llmcli.text.chat_template import ChatTemplate, Message, find_template

SAMPLES = (
    "def f(x):\n    return {'a': x ** 2}\n",
    "12345 + 67.89 = 12412.89; 3/4, 50%",
    "Ça va? Größe, naïve, łódź. Привет, мир! 你好，世界。 مرحبا 🙂‍🙂",
    "  two  spaces,\ttabs\r\nand lines\n\n\n",
)
CONVERSATIONS = (
    (Message("user", "What is a loaf?"),),
    (Message("user", "Hello!"), Message("assistant", "Good morning."), Message("user", "Two rye, please.")),
    (Message("system", "You are a baker."), Message("user", "What is fresh?")),
)
SAME_NUMBER = 1e-6  # relative: GGUF stores float32
# A bit less per weight doubles the rounding error of a weight and quadruples the KL divergence. The bounds are about
# twice and five times what Q8_0 and Q4_0 files of SmolLM2-135M-Instruct and gemma-3-270m reach. At 4 bits, the one on
# KL is so wide that a single wrong tensor may pass it; the one on weights finds that.
BITS = 4.5
WEIGHT_LIMIT, KL_LIMIT = 0.2, 2.0  # at BITS per weight: relative root mean square, and bits per token
EXACT_BITS = {"F32": 24.0, "F16": 11.0, "BF16": 8.0}  # the precision of a weight: significant bits


def faithful_plans(subject: Subject, original: LoadedModel) -> list[Plan]:
    """Return the plans that compare the subject's files with ``original``, which must be in float32 on the CPU."""
    ours = cache(lambda: _as_stored(subject))

    @cache
    def bits() -> float:
        return least_bits(subject.loaded)

    def logits() -> Finding:
        model = ours()
        size = min(model.config.vocab_size, original.model.config.vocab_size)
        a, b = (one_pass(one, subject.ids)[:, :size] for one in (original.model, model))
        kl = kl_divergence(a, b)
        limit = KL_LIMIT * 4 ** (BITS - bits())
        parted, largest = first_divergence(b, a, original.tokenizer), largest_difference(b, a)
        return Finding(float(kl.mean()), limit, parted, largest, float(kl.max()))

    def weights() -> Finding:
        return Finding(_worst_weight(ours(), original.model), WEIGHT_LIMIT * 2 ** (BITS - bits()))

    return [
        Plan("tokens = original", "texts become the same tokens", lambda: _tokens(subject, original)),
        Plan("template = original", "conversations become the same text", lambda: _template(subject, original)),
        Plan("config = original", "all sizes and settings are the same", lambda: _config(subject, original)),
        Plan("weights ~ original", "each tensor is as close as its format allows", weights),
        Plan("logits ~ original", "KL divergence, in bits per token, is in bounds", logits),
    ]


def least_bits(loaded: LoadedModel) -> float:
    """Return the bits per weight of the least precise matrix that is stored; of a float, its significant bits."""
    stored = read_headers(read_checkpoint(loaded.folder)).stored
    return min(
        EXACT_BITS.get(entry.dtype, 8 * (entry.end - entry.start) / math.prod(entry.shape))
        for entry in stored
        if len(entry.shape) > 1
    )


def _as_stored(subject: Subject) -> Transformer:
    """Return the subject's model in float32. Raises ``Skipped`` if its weights are not those of its files."""
    if subject.adapted or subject.loaded.quantization is not None:
        raise Skipped("the weights were changed after they were read")
    return subject.opened("cpu", "float32").model


def _tokens(subject: Subject, original: LoadedModel) -> Finding:
    ours, theirs = subject.loaded.tokenizer, original.tokenizer
    if not ours.has_tokens_of(theirs):
        raise LlmcliError("the vocabularies differ")
    texts = (subject.text, *SAMPLES)
    return Finding(max(fraction_different(ours.encode(text), theirs.encode(text)) for text in texts), 0.0)


def _template(subject: Subject, original: LoadedModel) -> Finding:
    ours, theirs = (find_template(loaded.folder) for loaded in (subject.loaded, original))
    if ours is None and theirs is None:
        raise Skipped("neither has a chat template")
    if ours is None or theirs is None:
        raise LlmcliError(f"only {(original if ours is None else subject.loaded).name} has a chat template")
    return Finding(
        max(fraction_different(_rendered(ours, talk), _rendered(theirs, talk)) for talk in CONVERSATIONS), 0.0
    )


def _rendered(template: ChatTemplate, messages: Sequence[Message]) -> str:
    """Return the conversation as text; empty if the template rejects it, as many do a system message."""
    try:
        return template.render(messages)
    except LlmcliError:
        return ""


def _config(subject: Subject, original: LoadedModel) -> Finding:
    names = list(_differing(subject.model.config, original.model.config))
    if names:
        raise LlmcliError("these differ: " + ", ".join(names))
    return Finding(0.0, 0.0)


def _differing(ours: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the fields that differ, those of nested dataclasses after a dot."""
    if dataclasses.is_dataclass(ours) and dataclasses.is_dataclass(theirs):
        for field in dataclasses.fields(ours):
            inner = f"{name}.{field.name}" if name else field.name
            yield from _differing(getattr(ours, field.name), getattr(theirs, field.name), inner)
    elif not _same(ours, theirs):
        yield f"{name} ({ours} instead of {theirs})"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=SAME_NUMBER)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def _worst_weight(ours: Transformer, theirs: Transformer) -> float:
    """Return the largest relative difference of a tensor. Raises LlmcliError if names or shapes differ."""
    a, b = _tensors(ours), _tensors(theirs)
    if other := sorted(a.keys() ^ b.keys()):
        raise LlmcliError(f"{len(other)} tensors are in one of them only, such as {other[0]}")
    errors = []
    for name in a:
        x, y = a[name](), b[name]()
        if x.shape != y.shape:
            raise LlmcliError(f"{name} has the shape {list(x.shape)} instead of {list(y.shape)}")
        errors.append(difference(x.float(), y.float()))
    return float(torch.tensor(errors, dtype=torch.float64).max())  # a NaN is the largest


def _tensors(model: Transformer) -> dict[str, Callable[[], Tensor]]:
    """Return by name what returns each tensor; matrices in blocks are unpacked one at a time."""
    found: dict[str, Callable[[], Tensor]] = {
        name: tensor.detach for name, tensor in model.named_parameters() if ".parts." not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, (QuantizedMatrix, QuantizedStack)) and ".parts." not in name:
            found[f"{name}.weight"] = partial(module.dense, slice(None))
    return found
