"""Training a tokenizer on the corpus: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from llmcli.files.atomic import replace_text
from llmcli.train.recipe import BOS_ID, EOS_ID

# The time that the library takes for a word grows with the square of its length: half a minute for 200,000 letters.
LONG = re.compile(r"(\S{1000}|\s{1000})")
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on ``documents``, with at most ``vocab_size`` tokens.

    Ids 0 and 1 are BOS and EOS; then come the 256 bytes, then the merges in the order in which they were learned. The
    vocabulary is smaller than ``vocab_size`` if the text has too few pairs of tokens that occur at least twice.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for document in documents for part in parts(document)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def parts(document: str) -> Iterator[str]:
    """Yield a document in parts that have no words of more than a thousand characters; usually there is only one."""
    return filter(None, LONG.split(document))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into ``folder``.

    ``context`` is the maximum number of tokens of the model.
    """
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": EOS,
                "model_max_length": context,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        ),
        "generation_config.json": json.dumps(
            {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "do_sample": True}, indent=2
        ),
    }
    for name, text in files.items():
        replace_text(folder / name, text + "\n")
