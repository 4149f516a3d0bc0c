"""``llmcli why``: which parts of the model contribute to a logit?"""

from __future__ import annotations

from functools import partial

import click

from llmcli import explain, render
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.location import at_option, head_option, layer_option, token_option, vs_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command
from llmcli.errors import usage_error


@click.command(cls=Command)
@prompt_options()
@at_option
@token_option
@vs_option
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=8,
    show_default=True,
    help="Show N rows in favor of the token and N against it. 0: all.",
)
@layer_option
@head_option
@output_options
@view_model_options
@verbose_option
def why(
    prompt: Prompt,
    at: str,
    token: str | None,
    other: str | None,
    top: int,
    layers: str | None,
    head: str | None,
    output: OutputOptions,
    choice: ModelChoice,
) -> None:
    """What pushed this logit up or down? Split it, exactly, into the contributions of each part of the model.

    With the final norm held fixed, a token's logit is a sum over the embedding, every attention head (L2.H5 is head 5
    of layer 2) and every MLP. A head's contribution is in turn a sum over earlier tokens. Each contribution is
    compared with the contribution to another token: the runner-up, or --vs. --layer and --head choose the heads to
    split by token.

    \b
    Examples:
      llmcli why "Once upon a"
      llmcli why "Tom was a boy. Lily was a girl. Lily lost" --token " her"
      llmcli why "The sun was shining and the birds were" --head 4.3
    """
    if head is not None and layers is not None:
        raise usage_error("--head and --layer cannot be combined", "give one of them")
    text = prompt.read()
    loaded = choice.open()

    report = explain.why(
        loaded,
        text,
        position=at,
        token=token,
        other=other,
        layers=layers,
        head=head,
        parse_special=prompt.parse_special,
    )
    output.show(report, partial(render.print_why, top=top), prompt=text, models=[describe_model(loaded)])
