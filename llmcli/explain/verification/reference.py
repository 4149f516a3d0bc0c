"""The same checkpoint in transformers, if installed: compares the residual stream after each layer and the logits."""

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
from llmcli.explain.verification.proof import Finding, Skipped, compare_logits
from llmcli.explain.verification.subject import Subject, batch
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG
from llmcli.storage.foreign_formats import quantization_settings
from llmcli.storage.quantize import quantization_of

LIMIT = DTYPE_TOLERANCE[torch.float32]


@dataclass(frozen=True)
class LayerError:
    """How far the residual stream after a layer is from transformers'.

    ``error`` is the norm of the difference, relative to the norm of transformers' vector, at the worst position.
    """

    layer: int
    error: float


@dataclass(frozen=True)
class Activations:
    """The residual stream after each layer [T, C] and the logits [T, V] of one model, fp32 on the CPU."""

    layers: list[Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Comparison:
    """The errors of all layers, and the finding on the logits."""

    layers: tuple[LayerError, ...]
    logits: Finding

    @property
    def worst(self) -> LayerError:
        return max(self.layers, key=lambda layer: math.inf if math.isnan(layer.error) else layer.error)


def compare_with_transformers(subject: Subject) -> Comparison:
    """Compare both in float32 on the CPU, one after the other. Raises ``Skipped`` if they cannot be compared."""
    check_installed()
    check_comparable(subject)
    ours = in_llmcli(subject)
    theirs = in_transformers(subject.loaded.folder, subject.ids)
    layers = tuple(
        LayerError(number, residual_error(a, b))
        for number, (a, b) in enumerate(zip(ours.layers, theirs.layers, strict=True))
    )
    return Comparison(layers, compare_logits(ours.logits, theirs.logits, LIMIT, subject.loaded.tokenizer))


def check_installed() -> None:
    """Raise ``Skipped`` unless transformers is installed."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise Skipped("transformers is not installed: pip install transformers") from None


def check_comparable(subject: Subject) -> None:
    """Raise ``Skipped`` if transformers would not run the same weights."""
    if subject.loaded.folder.is_file():
        raise Skipped("the weights are in a GGUF file, which transformers does not run as it is")
    config = read_json(subject.loaded.folder / CONFIG)
    if quantization_of(subject.model) is not None or quantization_settings(config) is not None:
        raise Skipped("the weights are quantized, which transformers does in another way")
    if subject.adapted:
        raise Skipped("an adapter is merged into the weights, but the folder holds only the base model")


def in_llmcli(subject: Subject) -> Activations:
    """Run the subject's model over its text."""
    model = subject.opened("cpu", "float32").model
    return record_activations(model.blocks, lambda: model(batch(model, subject.ids)))


def in_transformers(folder: Path, ids: Sequence[int]) -> Activations:
    """Run transformers with eager attention, without executing any code from the folder. ``Skipped`` if it fails."""
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
            layers = decoder_layers(decoder, decoder.config.num_hidden_layers)
            return record_activations(layers, lambda: model(torch.tensor([list(ids)]), use_cache=False).logits)
        except Exception as error:  # another library's, of any kind
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Skipped(f"transformers cannot run it: {first}") from error


def record_activations(layers: Iterable[nn.Module], forward: Callable[[], Tensor]) -> Activations:
    """Run ``forward`` and record the output of each of ``layers``."""
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
    return Activations([x.clone() for x in seen], logits)


def decoder_layers(decoder: nn.Module, count: int) -> nn.ModuleList:
    """Return the list of the decoder's ``count`` layers. Raises LookupError if there is none."""
    for module in decoder.modules():  # the outermost first
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise LookupError("its layers were not found")


def residual_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the norm of ours - theirs [T, C] relative to the norm of theirs, at the worst position."""
    tiny = torch.finfo(torch.float32).tiny
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(tiny)).max())


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars and warnings of transformers."""
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
