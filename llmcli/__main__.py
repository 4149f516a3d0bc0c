"""``python -m llmcli``, and where the console script starts: Ctrl-C is no traceback from the first import on."""

from __future__ import annotations

from llmcli.commands.shell.interrupt import ending_at_once


def main() -> None:
    with ending_at_once():
        from llmcli import cli
    cli.main()


if __name__ == "__main__":
    main()
