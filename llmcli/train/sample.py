"""What a model in training writes, to be seen as it learns."""

from __future__ import annotations

from pathlib import Path

import torch

from llmcli.generation.filters import Temperature
from llmcli.generation.generate import Generation
from llmcli.generation.generation_config import read_defaults
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.text.chat_template import Message
from llmcli.train.run import Run

TEMPERATURE = 0.8


def sample(run: Run, out: Path, prompt: str, *, max_new_tokens: int, seed: int) -> str:
    """The text that follows ``prompt``, or the reply to it where the model learns replies; the prompt is cut to fit."""
    encoder, model = run.encoder, run.model
    if encoder.form is None:
        ids = encoder.tokenizer.encode(prompt)
    else:
        ids = encoder.form.encode(encoder.form.render([Message("user", prompt)]))
    loaded = LoadedModel(out.name, out, model, encoder.tokenizer, read_defaults(out))
    ids = loaded.readable(ids)[: model.config.max_position_embeddings - 1]
    sampler = Sampler([Temperature(TEMPERATURE)], seed=seed)
    generation = Generation(loaded, ids, sampler=sampler, max_new_tokens=max_new_tokens)
    with torch.no_grad():
        for _ in generation:
            pass
    return generation.text
