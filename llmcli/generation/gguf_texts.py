"""What a GGUF file says about a model besides its numbers: name, tokenizer, chat template, end tokens."""

from __future__ import annotations

from llmcli.generation.generation_config import read_defaults
from llmcli.generation.loaded import named_stop_ids
from llmcli.storage.checkpoint import Checkpoint
from llmcli.text.chat_template import find_template
from llmcli.text.gguf.export import TokenizerMetadata, describe_tokenizer
from llmcli.text.gguf.vocabulary import TEMPLATE, TEMPLATE_NAMES
from llmcli.text.tokenizer import load_tokenizer
from llmcli.text.tokenizer_config import read_tokenizer_config


def gguf_metadata(checkpoint: Checkpoint, size: int, name: str) -> TokenizerMetadata:
    """Return the metadata of the model called ``name``, whose embedding has ``size`` rows.

    Nothing for a GGUF file, whose metadata are kept. Raises LlmcliError if a GGUF file cannot describe the tokenizer.
    """
    folder, config = checkpoint.folder, checkpoint.config
    if folder.is_file():
        return TokenizerMetadata({}, ())
    tokenizer = load_tokenizer(folder, name, model=checkpoint.raw)
    named = read_tokenizer_config(folder, checkpoint.raw).variables
    ids = {role: tokenizer.fast.token_to_id(named.get(key, "")) for role, key in TEMPLATE_NAMES.items()}
    ids["bos"] = config.bos_token_id if ids["bos"] is None else ids["bos"]
    ids["eos"] = tokenizer.eos_id
    stops = named_stop_ids(config, tokenizer, read_defaults(folder)) or config.eos_token_ids
    described = describe_tokenizer(tokenizer, size, {role: id for role, id in ids.items() if id is not None}, stops)
    template = find_template(folder)
    extra = {} if template is None else {TEMPLATE: template.source}
    return TokenizerMetadata({**described.metadata, **extra}, described.changes)
