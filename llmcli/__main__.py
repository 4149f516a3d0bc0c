"""The entry point of ``llmcli`` and ``python -m llmcli``. Ctrl-C while modules load exits without a traceback."""

from __future__ import annotations

from llmcli.commands.shell.interrupt import exit_on_ctrl_c


def main() -> None:
    """Run the command line."""
    with exit_on_ctrl_c():
        from llmcli import cli
    cli.main()


if __name__ == "__main__":
    main()
