"""``--at``, ``--layer``, ``--head`` and ``--token``: the part of the model that a view shows."""

from __future__ import annotations

import click

at_option = click.option(
    "--at",
    default="-1",
    show_default=True,
    metavar="POSITION",
    help="The position to examine: a number (negative: from the end) or a token's text.",
)
layer_option = click.option("--layer", "layers", metavar="LAYERS", help="Only these layers, such as 0-5 or 0,2,-1.")
head_option = click.option("--head", metavar="L.H", help="Only this head, such as 3.2 for head 2 of layer 3.")
token_option = click.option(
    "--token",
    metavar="TOKEN",
    help="The predicted token to examine: its text, such as ' Paris', or its id.  [default: the most probable]",
)
vs_option = click.option(
    "--vs", "other", metavar="TOKEN", help="Compare with this token.  [default: the most probable other]"
)
