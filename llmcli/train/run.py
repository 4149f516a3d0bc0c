"""Starting and resuming a run: its folder, its model and its objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmcli.engine.size import empty_model
from llmcli.errors import LlmcliError, usage_error
from llmcli.files.atomic import replacing_folder
from llmcli.files.json import read_json
from llmcli.files.names import CONFIG
from llmcli.files.sizes import readable
from llmcli.model.config import ModelConfig
from llmcli.model.device import memory_of
from llmcli.model.families import FAMILIES, llama
from llmcli.model.families.gemma import text_config
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint, save
from llmcli.storage.foreign_formats import without_settings
from llmcli.storage.quantized_checkpoint import copy_rest
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import find_template
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train import state
from llmcli.train.batches import Encoder, cut, pack
from llmcli.train.chat_tokens import add_chat_tokens
from llmcli.train.corpus import Corpus
from llmcli.train.dpo import Preference
from llmcli.train.objective import NextToken, Objective
from llmcli.train.optimizer import initialize
from llmcli.train.recipe import Recipe
from llmcli.train.vocabulary import save_tokenizer, train_tokenizer

TRAINING_BYTES = 12  # per parameter, at least: weight, gradient and momentum in fp32


@dataclass(frozen=True)
class TrainingRun:
    """A run that is ready to train.

    ``config_json`` is the content of the model's config.json, ``corpus`` the digest of the examples.
    """

    recipe: Recipe
    model: Transformer
    encoder: Encoder
    objective: Objective
    config_json: Mapping[str, Any]
    corpus: str


def begin_run(
    out: Path, recipe: Recipe, corpus: Corpus, *, init: Path | None = None, device: torch.device
) -> TrainingRun:
    """Create ``out``, a complete model folder with the initial weights, and the recipe in it.

    The model is loaded from the folder ``init``, or is new, with a tokenizer trained on the corpus.
    """
    with replacing_folder(out, last=CONFIG) as folder:
        if init is None:
            model, config_json = _new_model(folder, recipe, corpus, device)
        else:
            model, config_json = _initial_model(folder, recipe, init)
        recipe.write(folder)
        save(model, folder, config_json, dtype=torch.bfloat16)
        return _run(folder, recipe, corpus, model.to(device), config_json)


def resume_run(out: Path, recipe: Recipe, corpus: Corpus, *, device: torch.device) -> TrainingRun:
    """Return the run in ``out`` with ``recipe``, whose weights ``load_state`` restores later.

    Raises LlmcliError if the run was trained on another corpus.
    """
    if state.saved_corpus(out / state.FILE) not in (corpus.digest, None):
        raise usage_error(f"the run in {out} was trained on different text", kind="other-corpus")
    recipe.write(out)
    config = Checkpoint.read(out).config
    state.check_shapes(out / state.FILE, config)
    model = Transformer(config)
    return _run(out, recipe, corpus, model.to(device), read_json(out / CONFIG))


def _new_model(out: Path, recipe: Recipe, corpus: Corpus, device: torch.device) -> tuple[Transformer, dict[str, Any]]:
    """Return an untrained Llama model and its config.json, and write a tokenizer trained on the corpus to ``out``."""
    assert recipe.shape is not None
    tokenizer = train_tokenizer((example.text for example in corpus.train), recipe.shape.vocab_size)
    save_tokenizer(tokenizer, out, recipe.context)
    config = recipe.shape.model_config(tokenizer.get_vocab_size(), recipe.context)
    check_memory(config, device)
    model = Transformer(config)
    initialize(model, recipe.seed)
    return model, llama.describe(model.config)


def check_memory(config: ModelConfig, device: torch.device) -> None:
    """Raise LlmcliError if the memory of ``device`` is too small to train a new model."""
    parameters = sum(parameter.numel() for parameter in empty_model(config).parameters())
    needed, usable = parameters * TRAINING_BYTES, memory_of(device).usable
    if usable is not None and needed > usable:
        raise LlmcliError(
            f"a model of {parameters:,} parameters needs {readable(needed)} to train, and there are {readable(usable)}",
            "make it smaller",
        )


def _initial_model(out: Path, recipe: Recipe, init: Path) -> tuple[Transformer, dict[str, Any]]:
    """Return the model in ``init`` and its config.json, and copy the other files of its folder to ``out``.

    Adds chat tokens for "sft" and "dpo" if the model has no chat template. Raises LlmcliError if the weights are
    quantized or in a GGUF file.
    """
    if init.is_file():
        raise LlmcliError(f"{init}: a GGUF file cannot be trained", "start from the model that it was made from")
    source = Checkpoint.read(init)
    if source.quantization is not None:
        raise LlmcliError(f"{init}: quantized weights cannot be trained", "start from the original model")
    model = source.load(device=torch.device("cpu"), dtype=torch.float32, restored=True)
    copy_rest(init, out)
    if recipe.method != "pretrain" and find_template(out) is None:
        add_chat_tokens(out, model, seed=recipe.seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # A copy, because the original may be memory-mapped.
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
    rows = model.embedding.weight.shape[0]
    tokens = None if model.inputs is None else model.inputs.embedding.weight.shape[0]  # that have per-layer embeddings
    changes: dict[str, Any] = {"vocab_size": rows, "tie_word_embeddings": model.config.tie_word_embeddings}
    changes |= {} if tokens is None else {"vocab_size_per_layer_input": tokens}
    config_json = _of_text(without_settings(read_json(init / CONFIG)))
    model.config = replace(
        model.config, model_type=config_json["model_type"], vocab_size=rows, vocab_size_per_layer_input=tokens
    )
    if "text_config" in config_json:
        changes["text_config"] = {**config_json["text_config"], **changes}
    return model.train(), {**config_json, **changes}


def _of_text(config_json: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the text model alone, if the model also reads images and its text model is a known family.

    Only the text model is trained and written, and transformers would not find it in a model that reads images.
    """
    text = config_json.get("text_config")
    known = isinstance(text, Mapping) and text.get("model_type") in FAMILIES
    return dict(text_config(config_json)) if known else config_json


def _run(out: Path, recipe: Recipe, corpus: Corpus, model: Transformer, config_json: Mapping[str, Any]) -> TrainingRun:
    tokenizer, ends = load_tokenizer(out), model.config.eos_token_ids
    template = None if recipe.method == "pretrain" else find_template(out)
    form = None if template is None else TemplateFormat(template, tokenizer)
    encoder = Encoder(tokenizer, ends[0] if ends else None, form)
    return TrainingRun(recipe, model, encoder, objective_of(recipe, corpus, encoder), config_json, corpus.digest)


def objective_of(recipe: Recipe, corpus: Corpus, encoder: Encoder) -> Objective:
    """Return the objective of the recipe's method over the corpus."""
    if recipe.method == "dpo":
        return Preference(
            encoder.pairs(corpus.train),
            encoder.pairs(corpus.valid),
            context=recipe.context,
            batch_size=recipe.batch_size,
            beta=recipe.beta,
            seed=recipe.seed,
        )
    sizes = {"context": recipe.context, "batch_size": recipe.batch_size, "seed": recipe.seed}
    if recipe.method == "sft":
        batches = pack(encoder.mixed(corpus.train, plain=recipe.plain, seed=recipe.seed), **sizes)
        held_out = encoder.mixed(corpus.valid, plain=0.0, seed=recipe.seed)
    else:
        batches = cut(encoder.texts(corpus.train), **sizes)
        held_out = encoder.texts(corpus.valid)
    return NextToken(batches, held_out, sum(len(example.text.encode()) for example in corpus.valid))
