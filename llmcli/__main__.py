"""The entry point of ``llmcli`` and ``python -m llmcli``. Ctrl-C while modules load exits without a traceback."""

from __future__ import annotations

import os

from llmcli.commands.shell.interrupt import exit_on_ctrl_c


def main() -> None:
    """Run the command line."""
    limit_spinning()
    with exit_on_ctrl_c():
        from llmcli import cli
    cli.main()


def limit_spinning() -> None:
    """Let PyTorch's threads sleep after 20,000 spins without work, unless the environment says otherwise.

    By default, GNU OpenMP's spin 300,000 times, which beside busy programs takes the processor from the very threads
    that are waited for. Other OpenMP libraries ignore the variable.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


if __name__ == "__main__":
    main()
