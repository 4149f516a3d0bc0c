"""The options that say where a view looks: the same words in all of them (see ``explain.places``)."""

from __future__ import annotations

import click

at_option = click.option(
    "--at",
    default="-1",
    show_default=True,
    metavar="POSITION",
    help="At which token: its position, from the end if negative, or its text.",
)
layer_option = click.option("--layer", "layers", metavar="LAYERS", help="Only these, as in 0-5 or 0,2,-1.")
head_option = click.option("--head", metavar="L.H", help="One head alone: layer, dot, head.")
token_option = click.option("--token", metavar="TOKEN", help="Which token: its text, such as ' Paris', or its id.")
