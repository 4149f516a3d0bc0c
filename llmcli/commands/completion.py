"""``llmcli completion``: print the script that completes llmcli's commands, options and values in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from llmcli.commands.options.common import Choice

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, choices, models and files in your shell.

    \b
    To install it, run the line for your shell once, then open a new terminal:
      bash  echo 'eval "$(llmcli completion bash)"' >> ~/.bashrc
      zsh   echo 'eval "$(llmcli completion zsh)"' >> ~/.zshrc
      fish  llmcli completion fish > ~/.config/fish/completions/llmcli.fish

    Requires bash 4.4 or newer, or zsh with its completion system (compinit) enabled.

    \b
    Examples:
      llmcli completion bash
    """
    completer = get_completion_class(shell)
    assert completer is not None
    root = click.get_current_context().find_root().command
    click.echo(completer(root, {}, "llmcli", "_LLMCLI_COMPLETE").source())
