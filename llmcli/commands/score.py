"""``llmcli score``: which tokens surprise the model?"""

from __future__ import annotations

import sys
from functools import partial

import click

from llmcli import endpoint as servers
from llmcli import explain, render
from llmcli.commands.options.changes import Changes, change_options
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.distributed import DistributedModelChoice, distributed_view_options, follow
from llmcli.commands.options.endpoint import Endpoint, endpoint_options
from llmcli.commands.options.model import describe_model
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command, together=follow)
@prompt_options("text")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Show the N most surprising tokens. 0: all.",
)
@output_options
@distributed_view_options
@change_options
@endpoint_options
@verbose_option
def score(
    prompt: Prompt,
    top: int,
    output: OutputOptions,
    choice: DistributedModelChoice,
    changes: Changes,
    endpoint: Endpoint,
) -> None:
    """Which tokens surprise the model? Show each token's surprisal, its rank, and the entropy of the prediction.

    Surprisal is -log2 of the probability that the model gave the token. The totals are bits per byte and perplexity.
    A text longer than the context is scored in windows that overlap by half.

    \b
    Examples:
      llmcli score "Once upon a time there was a little spaceship."
      llmcli score --top 5 < story.txt
      llmcli score "The king was a very good dragon." --json
    """
    text = prompt.read()
    choice.exclude(changes.option or "", changes.option)
    if endpoint.given:
        report = servers.server_score(endpoint.open(), text)
        model = render.ModelLabel(report.model)
    else:
        loaded = changes.apply(choice.open())
        with render.CountProgress(sys.stderr, "scoring", "tokens") as progress:
            report = explain.score(loaded, text, parse_special=prompt.parse_special, progress=progress)
        model = describe_model(loaded)
    output.show(report, partial(render.print_score, top=top), prompt=text, models=[model])
