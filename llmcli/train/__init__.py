"""Training: a recipe and a corpus to a model, by pre-training, supervised fine-tuning or preference tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli import lazy

if TYPE_CHECKING:
    from llmcli.train.batches import Encoded as Encoded
    from llmcli.train.batches import Encoder as Encoder
    from llmcli.train.corpus import Corpus as Corpus
    from llmcli.train.corpus import Example as Example
    from llmcli.train.corpus import read_corpus as read_corpus
    from llmcli.train.corpus import read_examples as read_examples
    from llmcli.train.loop import sample as sample
    from llmcli.train.loop import train as train
    from llmcli.train.metrics import Metrics as Metrics
    from llmcli.train.metrics import MetricsFile as MetricsFile
    from llmcli.train.objective import Validation as Validation
    from llmcli.train.objective import validate as validate
    from llmcli.train.recipe import METHOD_DEFAULTS as METHOD_DEFAULTS
    from llmcli.train.recipe import Method as Method
    from llmcli.train.recipe import Recipe as Recipe
    from llmcli.train.recipe import Shape as Shape
    from llmcli.train.recipe import make_recipe as make_recipe
    from llmcli.train.recipe import read_recipe as read_recipe
    from llmcli.train.recipe import resumed_recipe as resumed_recipe
    from llmcli.train.run import TrainingRun as TrainingRun
    from llmcli.train.run import begin_run as begin_run
    from llmcli.train.run import resume_run as resume_run
    from llmcli.train.state import Stage as Stage
    from llmcli.train.state import stages as stages

__all__ = [
    "METHOD_DEFAULTS",
    "Corpus",
    "Encoded",
    "Encoder",
    "Example",
    "Method",
    "Metrics",
    "MetricsFile",
    "Recipe",
    "Shape",
    "Stage",
    "TrainingRun",
    "Validation",
    "begin_run",
    "make_recipe",
    "read_corpus",
    "read_examples",
    "read_recipe",
    "resume_run",
    "resumed_recipe",
    "sample",
    "stages",
    "train",
    "validate",
]
__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Encoded": "batches",
        "Encoder": "batches",
        "Corpus": "corpus",
        "Example": "corpus",
        "read_corpus": "corpus",
        "read_examples": "corpus",
        "sample": "loop",
        "train": "loop",
        "Metrics": "metrics",
        "MetricsFile": "metrics",
        "Validation": "objective",
        "validate": "objective",
        "METHOD_DEFAULTS": "recipe",
        "Method": "recipe",
        "Recipe": "recipe",
        "Shape": "recipe",
        "make_recipe": "recipe",
        "read_recipe": "recipe",
        "resumed_recipe": "recipe",
        "TrainingRun": "run",
        "begin_run": "run",
        "resume_run": "run",
        "Stage": "state",
        "stages": "state",
    },
)
