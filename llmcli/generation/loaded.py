"""A model folder opened for use: the transformer, its tokenizer, its stop tokens and its sampling defaults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch

from llmcli.engine.tensor_parallel.process_group import ProcessGroup
from llmcli.engine.tensor_parallel.transformer import load_split
from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.names import ADAPTER_CONFIG, CONFIG
from llmcli.generation.context import Overflow, as_ids, check_text, shorten
from llmcli.generation.filters import Filter, MinNewTokens, Vocabulary
from llmcli.generation.generation_config import Defaults, read_defaults
from llmcli.model.config import ModelConfig
from llmcli.model.device import pick_device, pick_dtype
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint, Progress
from llmcli.storage.finite import LoadNotes
from llmcli.storage.quantize import Quantization, quantization_of, quantize
from llmcli.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A model, its tokenizer, the ``defaults`` of its generation_config.json, and ``notes`` on how it loaded.

    ``adapter`` is the folder of the LoRA that is merged into its weights, if any, and ``quantization`` how they were
    then quantized.
    """

    name: str
    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    defaults: Defaults
    notes: LoadNotes = field(default_factory=LoadNotes)
    adapter: Path | None = None
    quantization: Quantization | None = None

    def __repr__(self) -> str:
        config = self.model.config
        layers = f"{config.model_type} with {config.num_hidden_layers} layers"
        return f"LoadedModel({self.name!r}, {layers}, {self.model.dtype_name} on {self.model.device})"

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a text: those that the model's files name, or else the usual one of its family."""
        return self.named_stop_ids or frozenset(self.model.config.eos_token_ids)

    @property
    def named_stop_ids(self) -> frozenset[int]:
        """The tokens that config.json and generation_config.json name, or else the tokenizer's end-of-text token."""
        return frozenset(named_stop_ids(self.model.config, self.tokenizer, self.defaults))

    def prompt_ids(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Encode a prompt. Raises the errors of ``readable``."""
        return self.readable(self.tokenizer.encode(text, parse_special=parse_special))

    def readable(self, ids: Iterable[int]) -> list[int]:
        """``ids`` as a list, or the BOS token alone if there are none and the model has one.

        Raises the errors of ``as_ids``.
        """
        found, bos = as_ids(ids, self.model.config.vocab_size), self.model.config.bos_token_id
        return found if found or bos is None else [bos]

    def vocabulary_filter(self) -> list[Filter]:
        """The filter that cuts ids beyond the tokenizer's size, if the embedding has such rows."""
        if self.tokenizer.size >= self.model.config.vocab_size:
            return []
        return [Vocabulary(self.tokenizer.size)]

    def length_filter(self) -> list[Filter]:
        """The filter for the ``min_new_tokens`` of generation_config.json, if it has any."""
        return [MinNewTokens(self.defaults.min_new_tokens)] if self.defaults.min_new_tokens else []


def named_stop_ids(config: ModelConfig, tokenizer: Tokenizer, defaults: Defaults) -> tuple[int, ...]:
    """The tokens that config.json and generation_config.json name, or else the tokenizer's end-of-text token."""
    named = dict.fromkeys((*(() if config.eos_by_default else config.eos_token_ids), *defaults.stop_ids))
    usual = () if tokenizer.eos_id is None or not config.eos_by_default else (tokenizer.eos_id,)
    return tuple(named) or usual


def load(
    folder: Path,
    *,
    name: str | None = None,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Quantization | None = None,
    restored: bool = False,
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Open the model in ``folder``, called ``name`` or, without one, as the folder.

    ``device`` and ``dtype`` are names of ``model.device``; "auto" picks the fastest, and the dtype "precise" is float32
    if the memory allows. ``adapter`` is the folder of a LoRA to merge into the weights. ``quantization`` then quantizes
    them, for the CPU; ``restored`` as for ``Checkpoint.load``. With ``group`` this rank loads its part of the model;
    ``group.device`` replaces ``device``.
    ``progress`` receives the work done and the total.

    Raises LlmcliError if the folder is not a model that llmcli can run.
    """
    if quantization not in (None, *get_args(Quantization)):
        raise usage_error(f"{quantization!r} is not a quantization", f"known: {', '.join(get_args(Quantization))}")
    checkpoint = read_checkpoint(folder)
    quantized = usage_error(f"the weights of {name or folder.name} are already quantized", kind="already-quantized")
    if quantization is not None and checkpoint.quantization is not None:
        raise quantized
    where = group.device if group is not None else device_for(checkpoint, device, quantization)
    tokenizer = load_tokenizer(folder, name, model=checkpoint.raw)
    defaults = read_defaults(folder, checkpoint.config.max_position_embeddings)

    def pick(stored: torch.dtype, float32_bytes: int) -> torch.dtype:
        return pick_dtype(dtype, where, stored, float32_bytes)

    model: Transformer
    notes = LoadNotes()
    if group is not None:
        model = load_split(checkpoint, group, dtype=pick, adapter=adapter, progress=progress, notes=notes)
    else:
        model = checkpoint.load(
            device=where,
            dtype=pick,
            adapter=adapter,
            build=EngineTransformer,
            progress=progress,
            notes=notes,
            restored=restored or quantization is not None,
        )
    if quantization is not None:
        if quantization_of(model) is not None:  # a GGUF file's
            raise quantized
        quantize(model, quantization, progress)
    return LoadedModel(name or folder.name, folder, model, tokenizer, defaults, notes, adapter, quantization)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read config.json, or a GGUF file's header. Raises the errors of ``Checkpoint.read``, or if it is an adapter."""
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        raise LlmcliError(f"{folder} is a LoRA adapter, not a model", kind="adapter-not-model")
    return Checkpoint.read(folder)


def device_for(checkpoint: Checkpoint, device: str, quantization: Quantization | None) -> torch.device:
    """The device that ``load`` uses; "auto" means the CPU if the weights are quantized."""
    quantized = quantization is not None or checkpoint.quantization is not None
    return pick_device("cpu" if quantized and device == "auto" else device)


def encode_prompt(
    loaded: LoadedModel, text: str, overflow: Overflow = "error", *, parse_special: bool = False
) -> list[int]:
    """The ids of a prompt. Raises LlmcliError if it is far too long for the context, unless it will be cut."""
    if overflow == "error":
        limit = loaded.model.config.max_position_embeddings
        check_text(text, loaded.tokenizer.encode, limit, "the prompt", "prompt-too-long")
    return loaded.prompt_ids(text, parse_special=parse_special)


def fit_prompt(loaded: LoadedModel, ids: Sequence[int], overflow: Overflow) -> list[int]:
    """A prompt that leaves room for at least one more token in the model's context.

    If the prompt is too long, "truncate-start" cuts its beginning, except for a BOS token, so that a quarter of the
    context is free. "shift" drops the older half, as a rolling context does. "error" raises LlmcliError.
    """
    limit = loaded.model.config.max_position_embeddings
    bos = int(ids[:1] == loaded.tokenizer.encode("")[:1])
    return shorten(ids, limit, overflow, first=bos)
