"""``llmcli explain``: a page that explains every token of a text."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmcli import explain as views
from llmcli import render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.length import fit
from llmcli.commands.options.model import ModelChoice, describe_model, model_options
from llmcli.commands.options.output import command_line
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.options.sampling import Sampling, sampling_options
from llmcli.commands.options.writable import check_writable
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.errors import EXIT_FAILURE, usage_error
from llmcli.files.sizes import readable

MOST_TOKENS = 200  # larger pages are slow to compute and to open


@click.command(cls=Command)
@prompt_options()
@heading("Output")
@click.option(
    "--save", type=click.Path(path_type=Path), metavar="FILE", help="The page to write, an .html file. Required."
)
@heading("Length")
@click.option(
    "--max-tokens",
    "--max-new-tokens",
    "-n",
    type=click.IntRange(1, MOST_TOKENS),
    default=20,
    show_default=True,
    help="Generate at most N tokens.",
)
@model_options
@sampling_options
@verbose_option
def explain(prompt: Prompt, save: Path | None, max_tokens: int, choice: ModelChoice, sampling: Sampling) -> None:
    """Write a page that explains every token of a text. It opens in any browser, without a network.

    For each generated token the page shows the candidates, with sliders for temperature, top-k, top-p, min-p and u
    that recompute what the sampler would do; the attention of every head; the prediction after each layer; the parts
    of the logit, by source token; and what could have followed another token. With the options and the seed of a
    `generate` run, it is about the text of that run.

    \b
    Examples:
      llmcli explain "Once upon a time" --save page.html
      llmcli explain "The king was" -n 5 --temperature 1.2 --save king.html
    """
    if save is None:
        raise usage_error("explain writes a page, and needs a file for it", "add --save page.html")
    if save.suffix != ".html":
        raise usage_error(f"--save {save}: the file name must end in .html")
    check_writable("--save", save)
    text = prompt.read()
    loaded = choice.open()
    ids = fit(loaded, text, "error", parse_special=prompt.parse_special)
    sampler = sampling.sampler(loaded)
    with render.CountProgress(sys.stderr, "explaining", "tokens") as progress:
        walk = views.walk_through(loaded, ids, sampler, sampling.order, max_tokens, progress)
    model = describe_model(loaded)
    caption = render.Caption(command_line(click.get_current_context()), text, [model])
    size = render.save_page(save, walk, loaded.tokenizer, model, caption)
    tokens = render.counted(len(walk.choices), "token")
    render.note(f"saved {save}: {tokens}, {readable(size)}", sys.stderr)
    render.print_check(walk.checked, sys.stderr)
    if not walk.checked.ok:
        sys.exit(EXIT_FAILURE)
