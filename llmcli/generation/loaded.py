"""A model folder opened for use: the transformer, its tokenizer and the tokens at which it stops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.engine.tensor_parallel.process_group import Ranks
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.names import ADAPTER_CONFIG
from llmcli.generation.filters import Filter, Vocabulary
from llmcli.generation.generation_config import Defaults, read_defaults
from llmcli.model.device import pick_device, pick_dtype
from llmcli.model.transformer import Transformer
from llmcli.storage import checkpoint
from llmcli.storage.quantize import Kind, quantize
from llmcli.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """What a prompt needs to become text. ``stop_ids`` end a text (config.json's and generation_config.json's)."""

    name: str
    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    defaults: Defaults

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset((*self.model.config.eos_token_ids, *self.defaults.stop_ids))

    def prompt_ids(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of a prompt, ``readable``."""
        return self.readable(self.tokenizer.encode(text, parse_special=parse_special))

    def readable(self, ids: list[int]) -> list[int]:
        """Ids as the model can read them: none become its BOS token alone, where it has one.

        Errors: a token that the model's embedding has no row for.
        """
        bos, rows = self.model.config.bos_token_id, self.model.config.vocab_size
        ids = ids if ids or bos is None else [bos]
        if max(ids, default=0) >= rows:
            raise LlmcliError(
                f"the prompt holds token {max(ids)}, but the model knows only {rows}",
                "the tokenizer belongs to another model",
            )
        return ids

    def vocabulary_filter(self) -> list[Filter]:
        """The filter that bars rows no token has, if there are such rows."""
        if self.tokenizer.size >= self.model.config.vocab_size:
            return []
        return [Vocabulary(self.tokenizer.size)]


def load(
    folder: Path,
    *,
    name: str | None = None,
    adapter: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: Kind | None = None,
    ranks: Ranks | None = None,
    progress: checkpoint.Progress | None = None,
) -> LoadedModel:
    """Open ``folder``; the model is called as the folder unless ``name`` is given.

    ``device`` and ``dtype`` are names of ``model.device``; "auto" picks what is fastest. ``adapter`` is
    the folder of a LoRA, merged into the weights. ``quantization`` rounds them then, which runs on the
    CPU alone. ``ranks`` share the model; then ``device`` is where this one computes. ``progress`` is told of the work
    done and in all.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        raise LlmcliError(f"{folder} is a LoRA adapter", "give its base model with -m, and this with --adapter")
    checkpoint.read_config(folder)  # its faults first
    if quantization is not None and checkpoint.is_quantized(folder):
        raise usage_error(
            f"the weights of {name or folder.name} are quantised already",
            "leave --quantize out, or name the model that they were rounded from",
        )
    where = device_for(folder, device, quantization)
    tokenizer = load_tokenizer(folder, name)
    defaults = read_defaults(folder)
    model = checkpoint.load(
        folder,
        device=where,
        dtype=lambda stored: pick_dtype(dtype, where, stored),
        adapter=adapter,
        ranks=ranks,
        progress=progress,
    )
    if quantization is not None:
        quantize(model, quantization, progress)
    return LoadedModel(name or folder.name, folder, model, tokenizer, defaults)


def device_for(folder: Path, device: str, quantization: Kind | None) -> torch.device:
    """Where ``load`` opens a model; "auto" means the CPU where the weights are rounded."""
    rounded = quantization is not None or checkpoint.is_quantized(folder)
    return pick_device("cpu" if rounded and device == "auto" else device)
