"""``llmcli tokenize``: what the model receives."""

from __future__ import annotations

import re
import sys

import click

from llmcli.commands.model import find_model
from llmcli.commands.options import Line, offline_option, verbose_option
from llmcli.commands.prompt import Prompt, prompt_options
from llmcli.errors import usage_error


@click.command()
@prompt_options("text")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    type=Line(),
    metavar="MODEL",
    help="A folder, a name of `llmcli models`, or org/name of the hub; several stand side by side.",
)
@offline_option
@click.option("--ids", "only_ids", is_flag=True, help="The ids alone, on one line.")
@click.option("--count", "only_count", is_flag=True, help="The number of tokens alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a model.")
@click.option("--decode", metavar="IDS", help='The other way: the text of these ids, such as "1 2 3".')
@verbose_option
def tokenize(
    prompt: Prompt,
    models: tuple[str, ...],
    offline: bool,
    only_ids: bool,
    only_count: bool,
    as_json: bool,
    decode: str | None,
    verbose: bool,
) -> None:
    """Show TEXT as the tokens that a model receives: ids, bytes, and their place in the text in bytes.

    \b
    Examples:
      llmcli tokenize "Once upon a time"
      llmcli tokenize --count < story.txt
      llmcli tokenize "naïve 🙂" -m llama-tales-11m -m path/to/another/model
      llmcli tokenize --decode "302 259 351"
    """
    if only_ids + only_count + as_json + (decode is not None) > 1:
        raise usage_error("--ids, --count, --json and --decode exclude each other", "give one of them")
    if decode is not None and (prompt.argument is not None or prompt.file is not None):
        raise usage_error("--decode takes ids and no TEXT", "leave one of them out")
    source = prompt.read() if decode is None else ""

    from llmcli.explain.tokens import tokenization
    from llmcli.hub.cache import name_of
    from llmcli.render import ndjson
    from llmcli.render import tokens as view
    from llmcli.render.generation import note
    from llmcli.text.tokenizer import load_tokenizer

    folders = [find_model(name, offline) for name in models or (None,)]
    tokenizers = [load_tokenizer(folder, name_of(folder)) for folder in folders]
    if decode is not None:
        ids = parse_ids(decode)
        for tokenizer in tokenizers:
            click.echo(view.printable(tokenizer.decode(ids, skip_special=False), sys.stdout))
        return
    reports = [tokenization(tokenizer, source, parse_special=prompt.parse_special) for tokenizer in tokenizers]
    for report in reports:
        if only_ids:
            click.echo(" ".join(str(token.id) for token in report.tokens))
        elif only_count:
            click.echo(len(report.tokens))
        elif as_json:
            ndjson.write(ndjson.tokenization(report), sys.stdout)
    if only_ids or only_count or as_json:
        return
    if len(reports) == 1:
        view.print_tokenization(reports[0], sys.stdout)
    else:
        view.print_side_by_side(reports, sys.stdout)
    for report in reports:
        note(view.tokenization_summary(report), sys.stderr)


def parse_ids(text: str) -> list[int]:
    """Whole numbers between spaces or commas. Errors: anything else."""
    words = [word for word in re.split(r"[\s,]+", text) if word]
    bad = [word for word in words if not re.fullmatch(r"[0-9]+", word)]
    if bad:
        raise usage_error(f"{bad[0]!r} is not a token id", 'ids are whole numbers, as in --decode "1 2 3"')
    return [int(word) for word in words]
