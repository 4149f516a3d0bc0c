"""``llmcli train``: train a tokenizer and a model from text, or fine-tune a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from llmcli import model, render, storage
from llmcli import train as training
from llmcli.commands.options.common import Choice, Real, device_option, threads_option, verbose_option
from llmcli.commands.options.model import complete_model, find_model
from llmcli.commands.shell.command import Command
from llmcli.commands.shell.help import heading
from llmcli.commands.shell.interrupt import end_by_signal, import_torch
from llmcli.errors import usage_error
from llmcli.files.atomic import clear_leftovers, replace_text, replacing_folder
from llmcli.files.names import CONFIG
from llmcli.train import demo as demo_run
from llmcli.train import recipe

if TYPE_CHECKING:
    import torch

SIZE = click.IntRange(max=recipe.MOST_SIZE)  # the recipe checks all other limits
SAMPLE_TOKENS = 90  # the length of the texts of --sample
VALIDATE_EVERY = 250  # steps; --demo validates four times in each stage instead
DEMO_OUT = "llmcli-demo"
# Options that set a field of the recipe: name, type, help. recipe_options adds the recipe's defaults to the help.
SHAPE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("vocab-size", SIZE, "Tokens in the vocabulary."),
    ("hidden-size", SIZE, "Width of the residual stream."),
    ("intermediate-size", SIZE, "Width of the MLPs."),
    ("num-hidden-layers", SIZE, "Number of layers."),
    ("num-attention-heads", SIZE, "Attention heads per layer."),
    ("num-key-value-heads", SIZE, "Key/value heads per layer."),
)
RECIPE_OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("method", Choice(get_args(recipe.Method)), "Training method (see above)."),
    ("context", SIZE, "Context length in tokens."),
    ("batch-size", SIZE, "Sequences of --context tokens per step."),
    ("tokens", click.INT, "Total tokens to train on."),
    ("optimizer", Choice(get_args(recipe.Optimizer)), "For the weight matrices; AdamW trains the rest."),
    ("learning-rate", Real(), "Peak learning rate."),
    ("weight-decay", Real(), "Weight decay of the matrices."),
    ("warmup", Real(), "Fraction of the run in which the learning rate rises."),
    ("decay", Real(), "Fraction of the run, at its end, in which the rate falls to zero."),
    ("plain", Real(), "sft: fraction of the replies trained without their prompts."),
    ("beta", Real(), "dpo: how strongly the model is kept close to --init."),
    ("precision", Choice(get_args(recipe.Precision)), "Precision of matrix products."),
    ("seed", click.INT, "Seed of the initial weights and of the data's order."),
)


def recipe_options(rows: tuple[tuple[str, Any, str], ...]) -> Callable[..., Any]:
    """Return a decorator that adds an option for each of ``rows``."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, kind, help in reversed(rows):
            text = f"{help}  [default: {recipe_default(name.replace('-', '_'))}]"
            command = click.option(f"--{name}", type=kind, help=text)(command)
        return command

    return decorate


def recipe_default(name: str) -> str:
    """Describe the default of a recipe's field, with the methods for which it differs: ``0.004; sft: 0.001``."""
    general = {**asdict(recipe.Recipe()), **asdict(recipe.Shape())}[name]
    specific = [f"{method}: {values[name]}" for method, values in recipe.METHOD_DEFAULTS.items() if name in values]
    return "; ".join([str(general), *specific])


@click.command(cls=Command)
@click.argument("corpus", nargs=-1, type=click.Path(path_type=Path))
@heading("Run")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the model.")
@click.option(
    "--valid",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Validation text. Repeatable.  [default: 5% of the corpus]",
)
@click.option(
    "--init", metavar="MODEL", shell_complete=complete_model, help="Start from this model instead of a new one."
)
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    help="Read the recipe from a TOML file, with one or more stages.",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out; --tokens can extend it.")
@click.option(
    "--demo", is_flag=True, help=f"Run all stages on a tiny corpus in two minutes.  [default for --out: {DEMO_OUT}]"
)
@heading("Recipe")
@recipe_options(RECIPE_OPTIONS)
@heading("Shape of a new model")
@recipe_options(SHAPE_OPTIONS)
@heading("Machine")
@device_option
@threads_option
@click.option("--compile", "compiled", is_flag=True, help="Compile the model first: faster, but needs a C++ compiler.")
@heading("Progress")
@click.option(
    "--checkpoint-minutes",
    type=Real(least=0),
    default=3.0,
    show_default=True,
    help="Minutes between checkpoints; 0: after every step.",
)
@click.option(
    "--validate-every", type=click.IntRange(min=1), help=f"Steps between validations.  [default: {VALIDATE_EVERY}]"
)
@click.option("--sample", metavar="TEXT", help="Show how the model continues this text at each validation.")
@verbose_option
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
    **recipe_values: Any,
) -> None:
    """Train a tokenizer and a Llama model on the text of the CORPUS files, or train an existing model further.

    CORPUS files are text (documents separated by <|endoftext|>) or JSON Lines with a "text"; both can be .gz or .xz.
    --out becomes a model folder that llmcli and transformers can load. Ctrl-C saves the progress for --resume.

    --method sft (supervised fine-tuning) trains on the replies of lines with a "prompt" and a "completion", and on
    the whole text of other documents. --method dpo (direct preference optimization) trains on lines with a "prompt",
    a "chosen" and a "rejected" reply. Both need --init and add a chat template if the model has none.

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
    torch_device = model.pick_device(device)
    model.use_threads(threads)
    if demo:
        if corpus or valid or init or recipe_file or given:
            raise usage_error("--demo has its own corpus and recipe", "omit CORPUS, --valid, --init and the recipe")
        out = out or Path(DEMO_OUT)
    if out is None or not (corpus or demo):
        raise usage_error(f"no {'--out' if corpus else 'CORPUS'} given", "give both, or --demo")
    base = None if init is None else find_model(init, offline=False)
    positions = None if base is None else storage.Checkpoint.read(base).config.max_position_embeddings
    recipes = demo_run.recipes() if demo else choose_recipes(out, given, recipe_file, resume, positions)
    stages = training.stages(recipes, out, base)
    check_stages(stages, resume=resume)
    runner = StageRunner(corpus, valid, torch_device, compiled, checkpoint_minutes * 60, validate_every, sample)
    if demo:
        runner = replace(runner, corpus=(write_demo_corpus(out),), samples=demo_run.SAMPLES)
    with end_by_signal() as ending:
        try:
            for number, stage in enumerate(stages, start=1):
                clear_leftovers(stage.out)
                if not stage.done:
                    runner.run(stage, title=f"stage {number} of {len(stages)}, " if len(stages) > 1 else None)
                elif len(stages) == 1:
                    with training.MetricsFile(out) as metrics:
                        write_loss_curve(stage, metrics)  # the run may have been killed before
                    render.note(f"{out} is complete at step {stage.recipe.steps}; --tokens extends it", sys.stderr)
        except KeyboardInterrupt:
            saved = any(stage.begun for stage in stages)
            after = "to continue, add --resume to the same command" if saved else "nothing was saved"
            render.note(f"interrupted; {after}", sys.stderr)
            sys.exit(ending.exit_code)
    if demo:
        render.note(f"ask it for a story: llmcli chat -m {out}", sys.stderr)


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of a training run. ``samples`` are the prompts to use without --sample, by method."""

    corpus: tuple[Path, ...]
    valid: tuple[Path, ...]
    device: torch.device
    compiled: bool
    checkpoint_seconds: float
    validate_every: int | None
    sample: str | None
    samples: Mapping[recipe.Method, str] = field(default_factory=dict)

    def run(self, stage: training.Stage, *, title: str | None) -> None:
        """Run ``stage`` to its end, and print its name first, after ``title``, if there is one.

        KeyboardInterrupt saves a checkpoint, prints the curve, and is raised again.
        """
        if title is not None:
            render.note(f"{title}{stage.recipe.method}: {stage.out}", sys.stderr)
        with training.MetricsFile(stage.out) as metrics:
            self._run(stage, metrics)

    def _run(self, stage: training.Stage, metrics: training.MetricsFile) -> None:
        resume, run = stage.begun, self.open(stage)
        metrics.open()
        steps = training.train(
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
            with render.TrainingProgress(sys.stderr, stage.recipe.unit) as progress:
                for step in steps:
                    metrics.append(step)
                    progress.show(step)
                    if step.scored and prompt is not None:
                        text = training.sample(run, stage.out, prompt, max_new_tokens=SAMPLE_TOKENS, seed=step.step)
                        progress.sample(prompt, text, reply=run.encoder.form is not None)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            steps.close()
        if metrics.history:
            write_loss_curve(stage, metrics)
            render.print_loss_curve(metrics.history, stage.recipe.unit, sys.stderr)
        if interrupted:
            raise KeyboardInterrupt

    def open(self, stage: training.Stage) -> training.TrainingRun:
        """Read the corpus, and begin or resume the stage's run."""
        corpus = training.read_corpus(self.corpus, self.valid, preferences=stage.recipe.method == "dpo")
        if stage.begun:
            return training.resume_run(stage.out, stage.recipe, corpus, device=self.device)
        return training.begin_run(stage.out, stage.recipe, corpus, init=stage.init, device=self.device)


def write_loss_curve(stage: training.Stage, metrics: training.MetricsFile) -> None:
    """Draw the loss of all steps to loss.svg. Raises LlmcliError if it cannot be written."""
    if metrics.history:
        replace_text(stage.out / "loss.svg", render.loss_svg(metrics.history, stage.recipe.unit))


def write_demo_corpus(out: Path) -> Path:
    """Write the demo's corpus into the folder ``out`` and return its path. Raises LlmcliError if that fails."""
    name = "corpus.jsonl"
    with replacing_folder(out, last=name) as folder:
        demo_run.write_corpus(folder / name)
    return out / name


def choose_recipes(
    out: Path, given: dict[str, Any], file: Path | None, resume: bool, positions: int | None
) -> list[recipe.Recipe]:
    """Return the recipe of each stage: from ``file``, from the options ``given``, or of the run in ``out`` to resume.

    ``positions`` is the context length of the initial model, if there is one. Raises LlmcliError for options together
    with a recipe file, and for options that would change the recipe of a resumed run.
    """
    if file is not None:
        if given:
            raise usage_error(f"--recipe and {_option(given)} cannot be combined", "set it in the recipe file")
        return recipe.read_recipe(file, positions=positions)
    if not resume:
        return [recipe.make_recipe(given, positions=positions)]
    fixed = {name: value for name, value in given.items() if name != "tokens"}
    if fixed or positions is not None:
        raise usage_error(f"--resume cannot change {_option(fixed) if fixed else '--init'}", "only --tokens can change")
    if not (out / recipe.FILE).exists():
        raise usage_error(f"{out} contains no run to resume", kind="nothing-to-resume")
    return [replace(recipe.resumed_recipe(out), **given)]


def _option(given: dict[str, Any]) -> str:
    return f"--{min(given).replace('_', '-')}"


def check_stages(stages: list[training.Stage], *, resume: bool) -> None:
    """Raise LlmcliError if a run would be overwritten, or if there is none to resume."""
    out, begun = stages[-1].out, [stage for stage in stages if stage.begun]
    if resume and not begun:
        raise usage_error(f"{out} contains no run to resume", kind="nothing-to-resume")
    if not resume and begun:
        raise usage_error(f"{begun[0].out} already contains a run", "continue it with --resume, or name another --out")
    if any(stage.init is not None and stage.init.resolve() == out.resolve() for stage in stages):
        raise usage_error("--out is the folder of the initial model", "name another folder")
    for stage in stages:
        if (stage.out / CONFIG).exists() and not (stage.out / recipe.FILE).exists():
            raise usage_error(f"{stage.out} contains another model, which would be overwritten", "name another --out")
