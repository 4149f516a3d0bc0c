"""The folder of a run: made with its tokenizer and recipe when it begins, opened again when it goes on."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from llmcli.errors import LlmcliError
from llmcli.text.tokenizer import load_tokenizer
from llmcli.train.corpus import Corpus
from llmcli.train.recipe import Recipe
from llmcli.train.vocabulary import save_tokenizer, train_tokenizer


def begin(out: Path, recipe: Recipe, corpus: Corpus) -> Tokenizer:
    """Make ``out``, train the tokenizer and write both; the recipe last, since it marks a run that can go on."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer(corpus.train, recipe.vocab_size)
        save_tokenizer(tokenizer, out, recipe.context)
        recipe.write(out)
    except OSError as error:
        raise LlmcliError(f"{out}: cannot be written: {error.strerror or error}", "name another --out") from error
    return tokenizer


def go_on(out: Path, recipe: Recipe) -> Tokenizer:
    """The tokenizer of the run in ``out``, whose recipe may have a new end."""
    tokenizer = load_tokenizer(out).fast
    recipe.write(out)
    return tokenizer
