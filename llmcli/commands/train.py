"""``llmcli train``: a tokenizer and a model from text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands import options
from llmcli.commands.command import Command
from llmcli.commands.interrupt import import_torch
from llmcli.errors import EXIT_INTERRUPTED, usage_error

if TYPE_CHECKING:
    from llmcli.train.recipe import Recipe

SIZE = click.IntRange(max=2**31 - 1)  # what is too small the recipe says
# Options that set a field of the recipe: name, type, help. The defaults are the recipe's own.
RECIPE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("tokens", click.IntRange(max=2**60), "Tokens to train on in all.  [default: 20000000]"),
    ("vocab-size", SIZE, "Tokens of the vocabulary.  [default: 4096]"),
    ("hidden-size", SIZE, "Width of the residual stream.  [default: 384]"),
    ("intermediate-size", SIZE, "Width of the MLPs.  [default: 1024]"),
    ("num-hidden-layers", SIZE, "[default: 6]"),
    ("num-attention-heads", SIZE, "[default: 6]"),
    ("num-key-value-heads", SIZE, "[default: 2]"),
    ("context", SIZE, "Tokens the model can see at once.  [default: 1024]"),
    ("batch-size", click.IntRange(max=2**16), "Sequences of a context's length a step.  [default: 8]"),
    ("optimizer", options.Choice(["muon", "adamw"]), "For the matrices; AdamW takes the rest.  [default: muon]"),
    ("learning-rate", options.Real(), "At its highest.  [default: 0.004]"),
    ("weight-decay", options.Real(), "Of the matrices.  [default: 0.05]"),
    ("warmup", options.Real(), "Share of the run in which the learning rate rises.  [default: 0.02]"),
    ("decay", options.Real(), "Share of the run in which it falls to zero.  [default: 0.6]"),
    ("precision", options.Choice(["bfloat16", "float32"]), "Of matrix products.  [default: bfloat16]"),
    ("seed", click.IntRange(max=2**63 - 1), "Of the weights and the data's order.  [default: 0]"),
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, kind, help in reversed(RECIPE_OPTIONS):
        command = click.option(f"--{name}", type=kind, help=help)(command)
    return command


@click.command(cls=Command)
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the model.")
@click.option("--valid", multiple=True, type=click.Path(path_type=Path), help="Validation text; else a twentieth.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --tokens may set a new end.")
@recipe_options
@options.device_option
@options.threads_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the model first: faster, needs a C++ compiler.")
@click.option(
    "--checkpoint-minutes",
    type=options.Real(least=0),
    default=3.0,
    show_default=True,
    help="Save after so many minutes; 0: after every step.",
)
@click.option("--validate-every", type=click.IntRange(min=1), default=250, show_default=True, help="Steps.")
@options.verbose_option
def train(
    corpus: tuple[Path, ...],
    out: Path,
    valid: tuple[Path, ...],
    resume: bool,
    device: str,
    threads: int | None,
    compiled: bool,
    checkpoint_minutes: float,
    validate_every: int,
    verbose: bool,
    **recipe_values: Any,
) -> None:
    """Train a tokenizer and a Llama-shaped model on the text of the CORPUS files.

    Text files (documents separated by <|endoftext|>) and JSON lines with a "text", plain, .gz or .xz.
    --out becomes a model folder that llmcli and transformers load. Ctrl-C keeps what was learnt.

    \b
    Examples:
      llmcli train stories.txt --out my-model --tokens 2000000
      llmcli train stories.txt --out my-model --resume
      llmcli generate -m my-model "Once upon a time"
    """
    given = {name: value for name, value in recipe_values.items() if value is not None}
    import_torch()
    from llmcli.model.device import pick_device
    from llmcli.model.threads import use_threads
    from llmcli.render.training import TrainingView, loss_svg, print_curve
    from llmcli.train.corpus import read_corpus
    from llmcli.train.loop import train as run
    from llmcli.train.metrics import MetricsFile
    from llmcli.train.run import begin, go_on
    from llmcli.train.state import FILE

    where = pick_device(device)
    use_threads(threads)
    recipe = recipe_for(out, given, resume=resume)
    texts = read_corpus(corpus, valid)
    tokenizer = go_on(out, recipe) if resume else begin(out, recipe, texts)
    metrics = MetricsFile(out)
    stepping = run(
        recipe,
        texts,
        tokenizer,
        out,
        device=where,
        resume=resume,
        compiled=compiled,
        checkpoint_seconds=checkpoint_minutes * 60,
        validate_every=validate_every,
    )
    interrupted = False
    try:
        with TrainingView(sys.stderr) as view:
            for step in stepping:
                metrics.append(step)
                view.show(step)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        stepping.close()
    if metrics.history:
        (out / "loss.svg").write_text(loss_svg(metrics.history), encoding="utf-8")
        print_curve(metrics.history, sys.stderr)
    if interrupted:
        saved = (out / FILE).exists()
        click.echo("interrupted; " + ("--resume goes on from here" if saved else "nothing was saved yet"), err=True)
        sys.exit(EXIT_INTERRUPTED)


def recipe_for(out: Path, given: dict[str, Any], *, resume: bool) -> Recipe:
    """The recipe of a new run, or that of the run in ``out`` with perhaps another end.

    Errors: a run is in ``out`` already; a resumed run's recipe would change.
    """
    from dataclasses import replace

    from llmcli.train.recipe import Recipe, read_recipe
    from llmcli.train.state import FILE

    if resume and not (out / FILE).exists():
        raise usage_error(f"{out} holds no run that could go on", "start one without --resume")
    if not resume:
        if (out / FILE).exists():
            raise usage_error(f"{out} holds a run already", "go on with it (--resume), or name another --out")
        return Recipe(**given)
    fixed = sorted(given.keys() - {"tokens"})
    if fixed:
        raise usage_error(
            f"--resume keeps the recipe, so not --{fixed[0].replace('_', '-')}", "only --tokens may change"
        )
    return replace(read_recipe(out), **given)
