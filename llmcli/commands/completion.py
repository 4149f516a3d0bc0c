"""``llmcli completion``: print the script that completes llmcli's commands, options and values in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from llmcli.commands.options.common import Choice

SHELLS = ("bash", "zsh", "fish")
# Like click's script for bash, with names that contain colons, where bash divides words, and with folders that are
# offered besides names.
BASH = r"""_llmcli_completion() {
    local IFS=$'\n' line=${COMP_LINE:0:COMP_POINT} words=() i rest prefix quote response completion type value
    for ((i = 0; i <= COMP_CWORD; i++)); do
        rest=${line#"${line%%[![:blank:]]*}"}
        if ((i > 0)) && [[ $rest == "$line" ]]; then
            words[${#words[@]}-1]+=${COMP_WORDS[i]}
        else
            words+=("${COMP_WORDS[i]}")
        fi
        line=${rest#"${COMP_WORDS[i]}"}
    done
    prefix=${words[${#words[@]}-1]}
    [[ $prefix == --*=* ]] && prefix=${prefix#*=}
    [[ $COMP_WORDBREAKS == *:* ]] && prefix=${prefix%"${prefix##*:}"} || prefix=
    quote=${COMP_WORDS[COMP_CWORD]:0:1}
    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) _LLMCLI_COMPLETE=bash_complete "$1")
    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"
        if [[ $type == dir ]]; then
            [[ $prefix ]] || compopt -o plusdirs
        elif [[ $type == file ]]; then
            compopt -o default
        elif [[ $type == plain ]]; then
            value=${value#"$prefix"}
            # readline itself quotes what may be a path
            [[ $prefix && $value == *[!-A-Za-z0-9_./:@~+=,]* && $quote != [\'\"] ]] && printf -v value %q "$value"
            COMPREPLY+=("$value")
        fi
    done
}
complete -o nosort -F _llmcli_completion llmcli
"""
# Like click's script for zsh, which loses every value after an empty one, such as a folder for which nothing is typed
# yet, and needs compdef.
ZSH = r"""#compdef llmcli
_llmcli_completion() {
    local -a names described response
    local type key description
    (( $+commands[llmcli] )) || return 1
    response=("${(@f)$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) _LLMCLI_COMPLETE=zsh_complete llmcli)}")
    for type key description in "${response[@]}"; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) [[ $description == _ ]] && names+=("$key") || described+=("$key:$description") ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#names )) && compadd -U -V unsorted -a names
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _llmcli_completion "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
    compdef _llmcli_completion llmcli
fi
"""


@click.command()
@click.argument("shell", type=Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands, options, choices, models and files in your shell.

    \b
    To install it, run the line for your shell once, then open a new terminal:
      bash  echo 'eval "$(llmcli completion bash)"' >> ~/.bashrc
      zsh   echo 'eval "$(llmcli completion zsh)"' >> ~/.zshrc
      fish  llmcli completion fish > ~/.config/fish/completions/llmcli.fish

    Requires bash 4.4 or newer, zsh or fish.

    \b
    Examples:
      llmcli completion bash
    """
    own = {"bash": BASH, "zsh": ZSH}
    if shell in own:
        click.echo(own[shell], nl=False)
        return
    completer = get_completion_class(shell)
    assert completer is not None
    root = click.get_current_context().find_root().command
    click.echo(completer(root, {}, "llmcli", "_LLMCLI_COMPLETE").source())
