"""Judges a story model against held-out text: how well it predicts, repeats itself, ends, and recites.

    python tests/bench/judge.py -m llama-tales-12m --train stories.train.jsonl.xz --valid stories.valid.jsonl.xz

Samples are written at the model's own default settings, with seeds from 0 on: half of them begin from nothing, half
with the first words of held-out documents. "held-out" measures the same of held-out documents, cut to the samples'
lengths. A model with a chat template is also asked for stories about things: how often a reply names the thing, and how
often replies to the other requests do.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from llmcli import load
from llmcli.generate.filters import FILTERS, filter_chain
from llmcli.generate.loaded import LoadedModel
from llmcli.generate.many import Task, Writing, write_many
from llmcli.generate.sampling import Sampler
from llmcli.text.chat import Message, find_template
from llmcli.text.turns import Templated
from llmcli.train.batches import Encoded
from llmcli.train.corpus import read_examples
from llmcli.train.validate import validate
from tests.bench.measures import Training, ends_well, packed_bits, repeated, words

SIDE_BY_SIDE = 32
BEGUN = 8  # words of a held-out document that a sample begins with
THINGS = (
    *("lighthouse", "dragon", "kitten", "robot", "garden", "rabbit", "princess", "boat", "snowman", "owl"),
    *("teacher", "castle", "bicycle", "spider", "moon", "horse", "cake", "pirate", "train", "bear"),
)
REQUEST = "Write a bedtime story about a {thing}."
Row = tuple[str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--valid", type=Path, nargs="+", required=True)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("-n", "--max-tokens", type=int, default=800)
    options = parser.parse_args()
    loaded = load(options.model)
    held_out = [example.text for example in read_examples(options.valid)]
    rows = predicting(loaded, held_out)
    written = write(loaded, prompts(loaded, held_out, options.samples), options)
    samples = [words(one.text) for one in written]
    alike = [words(text)[: len(sample)] for text, sample in zip(held_out, samples, strict=False)]
    rows += shape(samples, alike)
    well = [ends_well(one.text) and one.finish == "stop_token" for one in written]
    rows.append(("samples that end, and with a sentence", f"{statistics.mean(well):.0%}", ""))
    training = Training(example.text for example in read_examples(options.train))
    rows += reciting(training, samples, alike)
    rows += following(loaded, options)
    print("| | samples | held-out |\n|---|---|---|")
    for name, ours, theirs in rows:
        print(f"| {name} | {ours} | {theirs} |")


def predicting(loaded: LoadedModel, held_out: Sequence[str]) -> list[Row]:
    """Bits per byte."""
    end = loaded.model.config.eos_token_ids[0]
    encoded = [Encoded([*loaded.prompt_ids(text), end]) for text in held_out]
    size = sum(len(text.encode()) for text in held_out)
    found = validate(loaded.model, encoded, size, precision=torch.float32)
    packers = [(f"bits per byte, {name}", "", f"{bits:.3f}") for name, bits in packed_bits(held_out).items()]
    return [("bits per byte, the model", "", f"{found.bits_per_byte:.4f}"), *packers]


def prompts(loaded: LoadedModel, held_out: Sequence[str], count: int) -> list[list[int]]:
    """Half of nothing, half of beginnings."""
    begun = [" ".join(text.split(" ")[:BEGUN]) for text in held_out[: count // 2]]
    return [loaded.prompt_ids(text) for text in [""] * (count - len(begun)) + begun]


def write(loaded: LoadedModel, prompts: Sequence[Sequence[int]], options: argparse.Namespace) -> list[Writing]:
    """One text for each prompt."""
    filters = [*loaded.vocabulary_filter(), *filter_chain(list(FILTERS), loaded.defaults.sampling)]
    tasks = [Task(n, ids, Sampler(filters, n), options.max_tokens) for n, ids in enumerate(prompts)]
    done = {one.task.key: one.writing for one in write_many(loaded, tasks, SIDE_BY_SIDE)}
    return [done[key] for key in sorted(done)]


def shape(samples: Sequence[Sequence[str]], alike: Sequence[Sequence[str]]) -> list[Row]:
    """How long they are, and how much they repeat."""

    def of(texts: Sequence[Sequence[str]], n: int) -> str:
        return f"{statistics.mean(repeated(text, n) for text in texts):.1%}"

    median = statistics.median(len(text) for text in samples)
    rows = [("words, median", f"{median:.0f}", f"{statistics.median(len(text) for text in alike):.0f}")]
    return rows + [(f"{n}-grams that stood in the text before", of(samples, n), of(alike, n)) for n in (2, 4)]


def reciting(training: Training, samples: Sequence[Sequence[str]], alike: Sequence[Sequence[str]]) -> list[Row]:
    """How much of them stands in the training text."""
    rows = [
        (f"{n}-grams that stand in the training text", *(f"{training.recited(t, n):.1%}" for t in (samples, alike)))
        for n in (4, 8, 16)
    ]
    runs = [training.longest(texts) for texts in (samples, alike)]
    told = [f"{statistics.median(run):.0f} (at most {max(run)})" for run in runs]
    return [*rows, ("longest run of words from the training text, median", told[0], told[1])]


def following(loaded: LoadedModel, options: argparse.Namespace) -> list[Row]:
    """How often a reply is about what was asked for."""
    template = find_template(loaded.folder)
    if template is None:
        return []
    form = Templated(template, loaded.tokenizer)
    asked = [form.encode(form.write([Message("user", REQUEST.format(thing=thing))])) for thing in THINGS]
    replies = [" ".join(words(one.text)) for one in write(loaded, asked * 3, options)]
    named = [[thing in reply for thing in THINGS] for reply in replies]
    right = [row[n % len(THINGS)] for n, row in enumerate(named)]
    others = [one for n, row in enumerate(named) for place, one in enumerate(row) if place != n % len(THINGS)]
    return [
        (
            "replies that name what was asked for (others that do)",
            f"{statistics.mean(right):.0%}",
            f"{statistics.mean(others):.0%}",
        )
    ]


if __name__ == "__main__":
    main()
