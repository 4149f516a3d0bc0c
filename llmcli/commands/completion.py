"""``llmcli completion``: the script by which a shell completes llmcli's commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from llmcli.commands.options.common import Choice

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=Choice(SHELLS))
def completion(shell: str) -> None:
    """Let the shell complete commands, options, choices, models and files: print the script for SHELL.

    \b
    To install it, run the line for your shell once, and open a new terminal:
      bash  echo 'eval "$(llmcli completion bash)"' >> ~/.bashrc
      zsh   echo 'eval "$(llmcli completion zsh)"' >> ~/.zshrc
      fish  llmcli completion fish > ~/.config/fish/completions/llmcli.fish

    bash must be 4.4 or newer; zsh's own completion (compinit) must be on.

    \b
    Examples:
      llmcli completion bash
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "llmcli", "_LLMCLI_COMPLETE").source())
