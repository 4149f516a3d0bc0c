"""``llmcli train``: a tokenizer and a model from text, and what comes after: fine-tuning, preference tuning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options import common as options
from llmcli.commands.options.model import complete_model, find_model
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.commands.shell.interrupt import import_torch
from llmcli.errors import EXIT_INTERRUPTED, usage_error

if TYPE_CHECKING:
    import torch

    from llmcli.train.recipe import Method, Recipe
    from llmcli.train.run import TrainingRun
    from llmcli.train.state import Stage

SIZE = click.IntRange(max=2**31 - 1)  # what is too small the recipe says
SAMPLED = 90  # tokens of what --sample shows
VALIDATE_EVERY = 250  # steps; that of the demo depends on how many there are
DEMO_OUT = "llmcli-demo"
# Options that set a field of the recipe: name, type, help. The defaults are the recipe's own.
SHAPE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("vocab-size", SIZE, "Tokens of the vocabulary.  [default: 4096]"),
    ("hidden-size", SIZE, "Width of the residual stream.  [default: 384]"),
    ("intermediate-size", SIZE, "Width of the MLPs.  [default: 1024]"),
    ("num-hidden-layers", SIZE, "[default: 6]"),
    ("num-attention-heads", SIZE, "[default: 6]"),
    ("num-key-value-heads", SIZE, "[default: 2]"),
)
COURSE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("method", options.Choice(["pretrain", "sft", "dpo"]), "What is learnt, see above.  [default: pretrain]"),
    ("context", SIZE, "Tokens the model can see at once.  [default: 1024]"),
    ("batch-size", click.IntRange(max=2**16), "Sequences of a context's length a step.  [default: 8]"),
    (
        "tokens",
        click.IntRange(max=2**60),
        "Tokens to train on in all; sft 2000000, dpo 1000000.  [default: 20000000]",
    ),
    ("optimizer", options.Choice(["muon", "adamw"]), "For the matrices; AdamW takes the rest.  [default: muon]"),
    ("learning-rate", options.Real(), "At its highest; sft 0.001, dpo 0.0001.  [default: 0.004]"),
    ("weight-decay", options.Real(), "Of the matrices.  [default: 0.05]"),
    ("warmup", options.Real(), "Share of the run in which the learning rate rises.  [default: 0.02]"),
    ("decay", options.Real(), "Share in which it falls to zero; sft, dpo 0.9.  [default: 0.6]"),
    ("plain", options.Real(), "sft: share of the replies learnt without their prompts.  [default: 0.0]"),
    ("beta", options.Real(), "dpo: how closely the model is held to what it was.  [default: 0.1]"),
    ("precision", options.Choice(["bfloat16", "float32"]), "Of matrix products.  [default: bfloat16]"),
    ("seed", click.IntRange(max=2**63 - 1), "Of the weights and the data's order.  [default: 0]"),
)


def recipe_options(rows: tuple[tuple[str, Any, str], ...]) -> Callable[..., Any]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, help in reversed(rows):
            command = click.option(f"--{name}", type=kind, help=help)(command)
        return command

    return decorate


@click.command(cls=Command)
@click.argument("corpus", nargs=-1, type=click.Path(path_type=Path))
@heading("Run")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of the model.")
@click.option("--valid", multiple=True, type=click.Path(path_type=Path), help="Validation text; else a twentieth.")
@click.option(
    "--init", metavar="MODEL", shell_complete=complete_model, help="Begin with this model, not with a new one."
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="A TOML file with course and shape, of one run or of several.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out; --tokens may set a new end.")
@click.option(
    "--demo", is_flag=True, help=f"All of it on a tiny world, in two minutes.  [--out if not given: {DEMO_OUT}]"
)
@heading("Course")
@recipe_options(COURSE_OPTIONS)
@heading("Shape of a new model")
@recipe_options(SHAPE_OPTIONS)
@heading("Machine")
@options.device_option
@options.threads_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the model first: faster, needs a C++ compiler.")
@heading("Progress")
@click.option(
    "--checkpoint-minutes",
    type=options.Real(least=0),
    default=3.0,
    show_default=True,
    help="Save after so many minutes; 0: after every step.",
)
@click.option("--validate-every", type=click.IntRange(min=1), help="Steps.  [default: 250]")
@click.option("--sample", metavar="TEXT", help="At each validation show what the model makes of this prompt.")
@options.verbose_option
def train(
    corpus: tuple[Path, ...],
    out: Path,
    valid: tuple[Path, ...],
    init: str | None,
    recipe_file: Path | None,
    resume: bool,
    demo: bool,
    device: str,
    threads: int | None,
    compiled: bool,
    checkpoint_minutes: float,
    validate_every: int | None,
    sample: str | None,
    verbose: bool,
    **recipe_values: Any,
) -> None:
    """Train a tokenizer and a Llama-shaped model on the text of the CORPUS files, or any model further.

    Text files (documents separated by <|endoftext|>) and JSON lines with a "text", plain, .gz or .xz.
    --out becomes a model folder that llmcli and transformers load. Ctrl-C keeps what was learnt.

    --method sft (supervised fine-tuning) learns replies from lines with a "prompt" and a "completion", and
    texts from those that have none; --method dpo learns which reply is the better from lines with a "prompt",
    a "chosen" and a "rejected" reply. Both begin with --init, which learns a chat template if it has none.

    \b
    Examples:
      llmcli train --demo
      llmcli train stories.txt --out my-model --tokens 2000000
      llmcli train stories.txt --out my-model --resume
      llmcli train requests.jsonl --out my-chat --init my-model --method sft
      llmcli train pairs.jsonl --out my-best --init my-chat --method dpo
    """
    given = {name: value for name, value in recipe_values.items() if value is not None}
    import_torch()
    from llmcli.model.device import pick_device, use_threads
    from llmcli.storage.checkpoint import Checkpoint
    from llmcli.train.state import stages

    where = pick_device(device)
    use_threads(threads)
    if demo:
        if corpus or valid or init or recipe_file or given:
            raise usage_error("--demo brings its own text and recipe", "leave yours out")
        out = out or Path(DEMO_OUT)
    if out is None or not (corpus or demo):
        raise usage_error(f"there is no {'--out' if corpus else 'CORPUS'}", "give both, or --demo")
    beginning = None if init is None else find_model(init, offline=False)
    positions = None if beginning is None else Checkpoint.read(beginning).config.max_position_embeddings
    recipes = demo_recipes() if demo else recipes_for(out, given, recipe_file, resume=resume, positions=positions)
    planned = stages(recipes, out, beginning)
    check(planned, resume=resume)
    running = Running(corpus, valid, where, compiled, checkpoint_minutes * 60, validate_every, sample)
    if demo:
        running = of_demo(running, out)
    for stage in planned:
        if not stage.done:
            running.do(stage, told=len(planned) > 1)
        elif len(planned) == 1:
            click.echo(f"{out}: done, after step {stage.recipe.steps}; --tokens sets a new end", err=True)
    if demo:
        click.echo(f"Ask it for a story: llmcli chat -m {out}", err=True)


@dataclass(frozen=True)
class Running:
    """How each run is done; ``samples`` are prompts by method, for what is shown in place of --sample."""

    corpus: tuple[Path, ...]
    valid: tuple[Path, ...]
    device: torch.device
    compiled: bool
    checkpoint_seconds: float
    validate_every: int | None
    sample: str | None
    samples: Mapping[Method, str] = field(default_factory=dict)

    def do(self, stage: Stage, *, told: bool) -> None:
        """One run to its end, from where it was; ``told`` is whether it is named. Ctrl-C ends the command."""
        from llmcli.render.terminal import note
        from llmcli.render.training import TrainingProgress, loss_svg, print_loss_curve
        from llmcli.train.loop import sample, train
        from llmcli.train.metrics import MetricsFile

        if told:
            note(f"{stage.recipe.method}: {stage.out}", sys.stderr)
        resume, run = stage.begun, self.open(stage)
        metrics = MetricsFile(stage.out)
        stepping = train(
            run,
            stage.out,
            resume=resume,
            compiled=self.compiled,
            checkpoint_seconds=self.checkpoint_seconds,
            validate_every=self.validate_every or (max(stage.recipe.steps // 4, 1) if self.samples else VALIDATE_EVERY),
        )
        prompt = self.sample or self.samples.get(stage.recipe.method)
        interrupted = False
        try:
            with TrainingProgress(sys.stderr, stage.recipe.unit) as view:
                for step in stepping:
                    metrics.append(step)
                    view.show(step)
                    if step.scored and prompt is not None:
                        view.sample(sample(run, stage.out, prompt, max_new_tokens=SAMPLED, seed=step.step))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            stepping.close()
        if metrics.history:
            (stage.out / "loss.svg").write_text(loss_svg(metrics.history, stage.recipe.unit), encoding="utf-8")
            print_loss_curve(metrics.history, stage.recipe.unit, sys.stderr)
        if interrupted:
            click.echo(
                "interrupted; " + ("--resume goes on from here" if stage.begun else "nothing was saved yet"), err=True
            )
            sys.exit(EXIT_INTERRUPTED)

    def open(self, stage: Stage) -> TrainingRun:
        """The run, its corpus read."""
        from llmcli.train.corpus import read_corpus
        from llmcli.train.run import begin_run, resume_run

        corpus = read_corpus(self.corpus, self.valid, preferences=stage.recipe.method == "dpo")
        if stage.begun:
            return resume_run(stage.out, stage.recipe, corpus, device=self.device)
        return begin_run(stage.out, stage.recipe, corpus, init=stage.init, device=self.device)


def demo_recipes() -> list[Recipe]:
    from llmcli.train.demo import recipes

    return recipes()


def of_demo(running: Running, out: Path) -> Running:
    """On the demo's own text, which is written into ``out`` for whoever wants to see it."""
    from llmcli.train.demo import SAMPLES, write_corpus

    path = out / "corpus.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_corpus(path)
    except OSError as error:
        raise usage_error(f"{path}: {error.strerror or error}", "name another --out") from error
    return replace(running, corpus=(path,), samples=SAMPLES)


def recipes_for(
    out: Path, given: dict[str, Any], file: Path | None, *, resume: bool, positions: int | None
) -> list[Recipe]:
    """The recipes of new runs, or that of the run in ``out`` with perhaps another end.

    Errors: options beside a recipe file; a resumed run's recipe would change.
    """
    from llmcli.train.recipe import FILE, make_recipe, read_recipe, resumed_recipe

    if file is not None:
        if given:
            raise usage_error(f"--recipe says it all, so not {_option(given)}", "change it in a copy of the file")
        return read_recipe(file, positions=positions)
    if not resume:
        return [make_recipe(given, positions=positions)]
    fixed = {name: value for name, value in given.items() if name != "tokens"}
    if fixed or positions is not None:
        raise usage_error(
            f"--resume keeps the recipe, so not {_option(fixed) if fixed else '--init'}", "only --tokens may change"
        )
    if not (out / FILE).exists():
        raise usage_error(f"{out} holds no run that could go on", "start one without --resume")
    return [replace(resumed_recipe(out), **given)]


def _option(given: dict[str, Any]) -> str:
    return f"--{min(given).replace('_', '-')}"


def check(planned: list[Stage], *, resume: bool) -> None:
    """Errors: a run would be written over, or there is none to go on with."""
    out, begun = planned[-1].out, [stage for stage in planned if stage.begun]
    if resume and not begun:
        raise usage_error(f"{out} holds no run that could go on", "start one without --resume")
    if not resume and begun:
        raise usage_error(f"{begun[0].out} holds a run already", "go on with it (--resume), or name another --out")
    if any(stage.init is not None and stage.init.resolve() == out.resolve() for stage in planned):
        raise usage_error("--out is the model to begin with", "name another folder")
