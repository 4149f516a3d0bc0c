"""The same checkpoint in transformers, where that is installed: the residual behind every layer, and the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.explain.forward_pass import DTYPE_TOLERANCE
from llmcli.explain.verification.proof import Finding, Skipped, compared
from llmcli.explain.verification.subject import Subject, batch
from llmcli.files.json import read_json
from llmcli.storage.quantize import quantization_of

LIMIT = DTYPE_TOLERANCE[torch.float32]


@dataclass(frozen=True)
class Layer:
    """``error``: the length of the difference from transformers' residual behind a layer, as a share of that's length.

    At the worst position.
    """

    layer: int
    error: float


@dataclass(frozen=True)
class Inside:
    """What passed through a model: residuals behind each layer [T, C], and logits [T, V]. All fp32 on the CPU."""

    layers: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Compared:
    """Of all layers, and of the logits."""

    layers: tuple[Layer, ...]
    logits: Finding

    @property
    def worst(self) -> Layer:
        return max(self.layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)


def compare(subject: Subject) -> Compared:
    """Both in float32 on the CPU, one after the other. Raises ``Skipped`` where they cannot be compared."""
    importable()
    comparable(subject)
    ours = in_llmcli(subject)
    theirs = in_transformers(subject.loaded.folder, subject.ids)
    layers = tuple(
        Layer(number, apart(a, b)) for number, (a, b) in enumerate(zip(ours.layers, theirs.layers, strict=True))
    )
    return Compared(layers, compared(ours.logits, theirs.logits, LIMIT, subject.loaded.tokenizer))


def importable() -> None:
    """Raise unless transformers is there."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise Skipped("transformers is not installed: pip install transformers") from None


def comparable(subject: Subject) -> None:
    """Raise where transformers would not run the same weights."""
    if quantization_of(subject.model) is not None or "quantization_config" in read_json(
        subject.loaded.folder / "config.json"
    ):
        raise Skipped("the weights are rounded, which transformers does in other ways")
    if subject.adapted:
        raise Skipped("an adapter is merged into the weights: its folder holds only the base model")


def in_llmcli(subject: Subject) -> Inside:
    model = subject.opened("cpu", "float32").model
    return inside(model.blocks, lambda: model(batch(model, subject.ids)))


def in_transformers(folder: Path, ids: Sequence[int]) -> Inside:
    """With plain ("eager") attention, from the folder alone, none of whose code is run. ``Skipped`` if it fails."""
    from transformers import AutoModelForCausalLM

    with quiet():
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
            )
            decoder = model.get_decoder()
            layers = blocks(decoder, decoder.config.num_hidden_layers)
            return inside(layers, lambda: model(torch.tensor([list(ids)]), use_cache=False).logits)
        except Exception as error:  # another program's, of whatever kind
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Skipped(f"transformers cannot run it: {first}") from error


def inside(layers: Iterable[nn.Module], forward: Callable[[], Tensor]) -> Inside:
    """What leaves each of ``layers`` in a pass."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out)[0].float().cpu())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.inference_mode():
            logits = forward()[0].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return Inside([x.clone() for x in seen], logits)


def blocks(decoder: nn.Module, count: int) -> nn.ModuleList:
    """The list of a model's layers. Errors: there is none."""
    for module in decoder.modules():  # from the outside in
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise LookupError("its layers were not found")


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The length of the difference of two residuals [T, C] as a share of the second's, at the worst position."""
    tiny = torch.finfo(torch.float32).tiny
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(tiny)).max())


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no warnings of transformers' own."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
