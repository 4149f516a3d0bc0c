"""Chat tokens for a base model: one that starts a user's turn, one that starts the assistant's, and a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import nn

from llmcli.files.atomic import replace_text
from llmcli.files.json import read_json
from llmcli.model.layers import Linear
from llmcli.model.transformer import Transformer
from llmcli.text.chat_template import TEMPLATE_FILE
from llmcli.text.tokenizer import Tokenizer, load_tokenizer
from llmcli.text.tokenizer_config import TOKENIZER_CONFIG

USER, ASSISTANT = "<|user|>", "<|assistant|>"
TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|user|>' + message.content }}
{%- elif message.role == 'assistant' %}
{{- '<|assistant|>' + message.content + eos_token }}
{%- else %}
{{- raise_exception('roles must be user or assistant') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}"""


def add_chat_tokens(folder: Path, model: Transformer, *, seed: int) -> Tokenizer:
    """Add both tokens and the template to the tokenizer in ``folder``, and embeddings for the tokens to ``model``.

    A new embedding is the mean of the others plus noise with the standard deviation of a new model's embeddings.
    Returns the extended tokenizer.
    """
    tokenizer = load_tokenizer(folder)
    _ = tokenizer.size  # raises for ids over which saving would take minutes
    tokenizer.fast.add_special_tokens([AddedToken(text, special=True) for text in (USER, ASSISTANT)])
    config = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    bos, eos = model.config.bos_token_id, next(iter(model.config.eos_token_ids), None)
    special_ids = {"bos_token": bos, "eos_token": eos}
    special = {name: tokenizer.fast.id_to_token(id) for name, id in special_ids.items() if id is not None}
    files = {
        "tokenizer.json": tokenizer.fast.to_str(pretty=False),
        TEMPLATE_FILE: TEMPLATE,
        TOKENIZER_CONFIG: json.dumps({**special, **config}, indent=2),
    }
    for name, text in files.items():
        replace_text(folder / name, text)
    tokenizer = load_tokenizer(folder)
    resize_embeddings(model, tokenizer.size, seed=seed)
    return tokenizer


def resize_embeddings(model: Transformer, rows: int, *, seed: int) -> None:
    """Enlarge the embeddings and the head, which may share their weights, to at least ``rows`` rows."""
    generator = torch.Generator().manual_seed(seed)
    per_layer = None if model.inputs is None else model.inputs.embedding
    for module in (model.embedding, model.head, per_layer):
        if module is not None and (missing := rows - module.weight.shape[0]) > 0:
            old = module.weight.detach()
            noise = 0.02 * torch.randn(missing, old.shape[1], generator=generator)
            module.weight = nn.Parameter(torch.cat([old, old.mean(0) + noise.to(old)]))
            if isinstance(module, Linear) and module.bias is not None:
                bias = module.bias.detach()
                module.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(missing)]))
