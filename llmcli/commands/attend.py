"""``llmcli attend``: what does a token look at?"""

from __future__ import annotations

from functools import partial

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.location import at_option, head_option, layer_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@prompt_options()
@at_option
@layer_option
@head_option
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Show the N most attended positions. 0: all.",
)
@click.option("--no-sink", is_flag=True, help="Hide the first position, which idle heads attend to (attention sink).")
@output_options
@view_model_options
@verbose_option
def attend(
    prompt: Prompt,
    at: str,
    layers: str | None,
    head: str | None,
    top: int,
    no_sink: bool,
    output: OutputOptions,
    choice: ModelChoice,
) -> None:
    """What does a token look at? Show the attention weights of each head on earlier tokens.

    Each row is a token that the token at --at attends to. --head shows the full pattern of one head instead: the
    attention weights of each of the last tokens, in percent.

    \b
    Examples:
      llmcli attend "The cat that I saw yesterday was sleeping" --at was
      llmcli attend "The fish swam in the" --layer 3-5 --no-sink
      llmcli attend "The cat that I saw yesterday was sleeping" --head 3.2
    """
    if head is not None and (layers is not None or no_sink):
        raise usage_error("--head cannot be combined with --layer or --no-sink", "omit them")
    text = prompt.read()
    loaded = choice.open()

    if head is not None:
        pattern = explain.attention_pattern(loaded, text, head, position=at, parse_special=prompt.parse_special)
        output.show(pattern, render.print_attention_pattern, prompt=text, models=[describe_model(loaded)])
        return
    report = explain.attend(loaded, text, position=at, layers=layers, parse_special=prompt.parse_special)
    output.show(
        report, partial(render.print_attend, top=top, sink=not no_sink), prompt=text, models=[describe_model(loaded)]
    )
