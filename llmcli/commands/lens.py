"""``llmcli lens``: what would the model predict after each layer?"""

from __future__ import annotations

import click

from llmcli import explain, render
from llmcli.commands.options.changes import Ablation, ablation_options
from llmcli.commands.options.common import verbose_option
from llmcli.commands.options.lens_file import chosen_kind, saved_lens
from llmcli.commands.options.location import at_option, layer_option, token_option
from llmcli.commands.options.model import ModelChoice, describe_model, view_model_options
from llmcli.commands.options.output import OutputOptions, output_options
from llmcli.commands.options.prompt import Prompt, prompt_options
from llmcli.commands.shell.command import Command


@click.command(cls=Command)
@prompt_options()
@at_option
@token_option
@layer_option
@click.option("--tuned", is_flag=True, help="Read each layer through the tuned lens that fit-lens saved.")
@click.option("--jacobian", is_flag=True, help="Read each layer through the Jacobian lens that fit-lens saved.")
@output_options
@view_model_options
@ablation_options
@verbose_option
def lens(
    prompt: Prompt,
    at: str,
    token: str | None,
    layers: str | None,
    tuned: bool,
    jacobian: bool,
    output: OutputOptions,
    choice: ModelChoice,
    ablation: Ablation,
) -> None:
    """When does the answer appear? Show what the model would predict if it stopped after each layer.

    The logit lens applies the model's last step, the final norm and the output head, to the residual stream after
    every layer. The last row is the model's actual prediction. --token tracks a token other than the most probable
    one. --tuned and --jacobian map each layer to the last one's basis first, with a lens that `llmcli fit-lens` made.

    \b
    Examples:
      llmcli lens "Once upon a"
      llmcli lens "The cat that I saw yesterday was" --token " sleeping"
      llmcli lens "Once upon a time" --at 2 --layer 3-5
    """
    kind = chosen_kind(tuned, jacobian)
    text = prompt.read()
    opened = choice.open() if kind is None else choice.open_restored()
    fitted = None if kind is None else saved_lens(opened, kind)
    loaded = ablation.apply(opened)

    report = explain.lens(
        loaded, text, position=at, token=token, layers=layers, fitted=fitted, parse_special=prompt.parse_special
    )
    output.show(report, render.print_lens, prompt=text, models=[describe_model(loaded)])
