"""``llmcli compare``: what did fine-tuning change?"""

from __future__ import annotations

import sys
from functools import partial

import click

from llmcli import explain, render
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.model import ModelChoice, describe_model, pair_of, pair_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@prompt_options("text")
@click.option(
    "--top", type=click.IntRange(min=0), default=20, show_default=True, help="Show the N largest changes. 0: all."
)
@click.option(
    "--summary", is_flag=True, help="Show how far apart the models are over the whole text, instead of each token."
)
@output_options
@pair_options
@change_options
@verbose_option
def compare(
    prompt: Prompt,
    top: int,
    summary: bool,
    output: OutputOptions,
    choices: tuple[ModelChoice, ...],
    changes: Changes,
) -> None:
    """What did fine-tuning change? Score TEXT with two models that share a tokenizer, token by token.

    Shows each token's log probability under both models, and how different their distributions are (Kullback-Leibler
    divergence of the second from the first). With --adapter, --ablate or --steer, compares one model with its changed
    self.

    --summary shows how good a quantized or converted file is: KL divergence both ways over a whole text (mean, median,
    99th percentile, largest), how often both models prefer the same token, both perplexities, and bytes on disk.

    \b
    Examples:
      llmcli compare -m llama-tales-12m -m my-model "The king was very old."
      llmcli compare -m llama-tales-12m --adapter my-lora --top 5 < story.txt
      llmcli compare -m llama-tales-12m --ablate mlp.4 "The king was very old."
      llmcli compare -m org/name -m q4.gguf --summary --prompt-file a.txt
    """
    if summary and click.get_current_context().get_parameter_source("top") is click.core.ParameterSource.COMMANDLINE:
        raise usage_error("--summary shows no single tokens, so --top has no effect", "omit one of them")
    pair = pair_of(choices, changed=changes.option is not None)
    text = prompt.read()
    first = pair[0].open()
    second = changes.apply(first) if changes.option else pair[1].open()
    models = [describe_model(first), describe_model(second)]
    with render.CountProgress(sys.stderr, "scoring", "tokens") as progress:
        if summary:
            figures = explain.compare_summary(
                first, second, text, parse_special=prompt.parse_special, progress=progress
            )
        else:
            report = explain.compare(first, second, text, parse_special=prompt.parse_special, progress=progress)
    if summary:
        output.show(figures, render.print_compare_summary, prompt=text, models=models)
    else:
        output.show(report, partial(render.print_compare, top=top), prompt=text, models=models)
