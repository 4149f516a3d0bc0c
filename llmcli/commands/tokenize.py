"""``llmcli tokenize``: show a text as the tokens that the model receives."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from llmcli import explain, render, text
from llmcli.commands.options.common import offline_option, verbose_option
from llmcli.commands.options.model import MODEL_HELP, find_model, models_option
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.template import Template, template_options
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import EXIT_FAILURE, usage_error
from llmcli.files.ndjson import write_line
from llmcli.hub import name_of
from llmcli.render import json_forms


@click.command(cls=Command)
@prompt_options("text")
@models_option(f"{MODEL_HELP}. Repeatable, to compare tokenizers.")
@offline_option
@click.option("--ids", "only_ids", is_flag=True, help="Print only the ids, on one line.")
@click.option("--count", "only_count", is_flag=True, help="Print only the number of tokens.")
@click.option("--merges", is_flag=True, help="Show how each word became tokens: every BPE merge with its rank.")
@click.option("--decode", metavar="IDS", help='Print the text of these ids, such as "1 2 3".')
@heading("Chat")
@click.option(
    "--chat",
    "chat_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show the chat or list of messages in FILE as the model's chat template renders it, by message.",
)
@template_options
@output_options
@verbose_option
def tokenize(
    prompt: Prompt,
    models: tuple[str, ...],
    offline: bool,
    only_ids: bool,
    only_count: bool,
    merges: bool,
    decode: str | None,
    chat_file: Path | None,
    template: Template,
    output: OutputOptions,
) -> None:
    """What does the model receive? Show TEXT as tokens: ids, bytes and byte offsets.

    --merges shows how byte-pair encoding builds the tokens of each word: which pairs it joins, in order of rank.
    --chat shows which tokens of a conversation come from which message, and which the chat template adds.

    \b
    Examples:
      llmcli tokenize "Once upon a time"
      llmcli tokenize "The unhappiest fox" --merges
      llmcli tokenize --count < story.txt
      llmcli tokenize "naïve 🙂" -m llama-tales-12m -m path/to/another/model
      llmcli tokenize --decode "302 259 351"
      llmcli tokenize --chat chat.json --template my.jinja
    """
    check_options(prompt, models, only_ids, only_count, merges, decode, output)
    check_chat_options(prompt, chat_file, template, merges=merges, decode=decode)
    folders = [find_model(name, offline) for name in models or (None,)]
    if chat_file is not None:
        messages = text.read_messages(chat_file)
        write_chat(folders, messages, template, output, only_ids=only_ids, only_count=only_count)
        return
    source = prompt.read() if decode is None else ""

    tokenizers = [load(folder) for folder in folders]
    if merges:
        merged = explain.merges(tokenizers[0], source, parse_special=prompt.parse_special)
        output.show(merged, render.print_merges, prompt=source, models=[merged.model])
        return
    for tokenizer in tokenizers:
        if decode is not None:
            click.echo(render.printable(tokenizer.decode(parse_ids(decode), skip_special=False), sys.stdout))
        elif only_ids or only_count:
            ids = tokenizer.encode(source, parse_special=prompt.parse_special)
            click.echo(" ".join(map(str, ids)) if only_ids else len(ids))
    if decode is not None or only_ids or only_count:
        return
    reports = [explain.tokenize(tokenizer, source, parse_special=prompt.parse_special) for tokenizer in tokenizers]
    if output.as_json:
        for report in reports:
            write_line(json_forms.tokenization(report), sys.stdout)
    else:
        render.print_tokenize(reports, sys.stdout, sys.stderr)
    output.save_picture(
        lambda stream: render.print_tokenize(reports, stream, stream),
        prompt=source,
        models=[report.model for report in reports],
    )
    if not all(report.check.ok for report in reports):
        sys.exit(EXIT_FAILURE)


def load(folder: Path) -> text.Tokenizer:
    """The tokenizer of a model."""
    return text.load_tokenizer(folder, render.one_line(name_of(folder)))


def write_chat(
    folders: Sequence[Path],
    messages: Sequence[text.Message],
    template: Template,
    output: OutputOptions,
    *,
    only_ids: bool,
    only_count: bool,
) -> None:
    """Write the tokens of a conversation, or only their ids or number, for the model in each folder."""
    reports = [explain.tokenize_chat(load(folder), messages, template.of(folder)) for folder in folders]
    if only_ids or only_count:
        for report in reports:
            ids = [token.id for token in report.tokens]
            click.echo(" ".join(map(str, ids)) if only_ids else len(ids))
    elif output.as_json:
        for report in reports:
            write_line(json_forms.record(report), sys.stdout)
    else:
        render.print_tokenize_chat(reports, sys.stdout, sys.stderr)
    output.save_picture(
        lambda stream: render.print_tokenize_chat(reports, stream),
        models=[report.model for report in reports],
    )
    if not all(report.check.ok for report in reports):
        sys.exit(EXIT_FAILURE)


def check_chat_options(
    prompt: Prompt, chat_file: Path | None, template: Template, *, merges: bool, decode: str | None
) -> None:
    """Raise LlmcliError for options that cannot be combined with --chat, or need it."""
    if chat_file is None:
        if template.given:
            raise usage_error("--template and --template-arg need --chat", "name a saved chat with --chat FILE")
        return
    others = {
        "TEXT": prompt.argument,
        "--prompt-file": prompt.file,
        "--parse-special": prompt.parse_special,
        "--merges": merges,
        "--decode": decode,
    }
    for name, value in others.items():
        if value not in (None, False):
            raise usage_error(f"--chat and {name} cannot be combined", "omit one of them")


def check_options(
    prompt: Prompt,
    models: tuple[str, ...],
    only_ids: bool,
    only_count: bool,
    merges: bool,
    decode: str | None,
    output: OutputOptions,
) -> None:
    """Raise LlmcliError for options that cannot be combined."""
    bare = only_ids + only_count + (decode is not None)
    if bare + (merges or output.as_json) > 1:
        raise usage_error(
            "--ids, --count and --decode cannot be combined with each other, --merges or --json", "use one of them"
        )
    if bare and output.picture is not None:
        raise usage_error("--ids, --count and --decode cannot be saved as a picture", "omit --save")
    if decode is not None and (prompt.argument is not None or prompt.file is not None):
        raise usage_error("--decode takes ids instead of TEXT", "omit one of them")
    if merges and len(models) > 1:
        raise usage_error("--merges works with one model", "use -m once")


def parse_ids(value: str) -> list[int]:
    """Return the whole numbers in a text, separated by spaces or commas. Raises LlmcliError for anything else."""
    words = [word for word in re.split(r"[\s,]+", value) if word]
    bad = [word for word in words if not re.fullmatch(r"[0-9]{1,9}", word)]
    if bad:
        raise usage_error(f"{bad[0]!r} is not a token id", 'ids are whole numbers, as in --decode "1 2 3"')
    return [int(word) for word in words]
