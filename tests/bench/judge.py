"""Judges a story model against held-out text: how well it predicts, repeats itself, ends, and recites.

    python tests/bench/judge.py -m llama-tales-12m --train stories.train.jsonl.xz --valid stories.valid.jsonl.xz

Samples are written at the model's own default settings, with seeds from 0 on: half of them begin from nothing, half
with the first words of held-out documents, which are not measured. "held-out" measures the same of held-out documents,
cut to the samples' lengths: other documents from their beginnings, and how those that samples began with really go on.
A model with a chat template is also asked for stories about things: how often a reply names the thing, and how often
replies to the other requests do. Takes minutes, and 4 GB of memory for 60 MB of training text.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch

from llmcli import load
from llmcli.generation.batch import Request, generate_batch
from llmcli.generation.filters import FILTERS, filter_chain
from llmcli.generation.generate import GeneratedText
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler
from llmcli.text.chat_format import TemplateFormat
from llmcli.text.chat_template import Message, find_template
from llmcli.train.batches import Encoded
from llmcli.train.corpus import read_examples
from llmcli.train.objective import validate
from tests.bench.measures import (
    WORD,
    Numbers,
    Training,
    Words,
    characters,
    distinct,
    ends_well,
    names,
    packed_bits,
    repeated,
    words,
)

SIDE_BY_SIDE = 32
BEGUN = 8  # words of a held-out document that a sample begins with
THINGS = (
    *("lighthouse", "dragon", "kitten", "robot", "garden", "rabbit", "princess", "boat", "snowman", "owl"),
    *("teacher", "castle", "bicycle", "spider", "moon", "horse", "cake", "pirate", "train", "bear"),
)
ASKED = 10  # times for each thing
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
    begun = [" ".join(text.split(" ")[:BEGUN]) for text in held_out[: options.samples // 2]]
    nothing = options.samples - len(begun)
    written = write(loaded, [loaded.prompt_ids(text) for text in [""] * nothing + begun], options)
    samples = [one.text for one in written]
    others = islice(cycle(held_out[len(begun) :] or held_out), nothing)
    rest = [text[len(start) :] for text, start in zip(held_out, begun, strict=False)]
    alike = [cut(text, len(words(sample))) for text, sample in zip([*others, *rest], samples, strict=True)]
    rows += shape(samples, alike)
    well = [ends_well(one.text) and one.finish == "stop_token" for one in written]
    end = f"samples that end within {options.max_tokens} tokens, and with a sentence"
    rows.append((end, share(well), share([ends_well(text) for text in held_out])))
    rows += reciting(options.train, samples, alike)
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


def cut(text: str, count: int) -> str:
    """A text up to its word number ``count``."""
    found = list(islice(WORD.finditer(text), count))
    return text[: found[-1].end()] if found else ""


def share(of: Sequence[bool]) -> str:
    return f"{statistics.mean(of):.0%}"


def write(loaded: LoadedModel, prompts: Sequence[Sequence[int]], options: argparse.Namespace) -> list[GeneratedText]:
    """One text for each prompt."""
    filters = [*loaded.vocabulary_filter(), *filter_chain(list(FILTERS), loaded.defaults.sampling)]
    requests = [Request(n, ids, Sampler(filters, n), options.max_tokens) for n, ids in enumerate(prompts)]
    done = {step.request.key: step.text for step in generate_batch(loaded, requests, SIDE_BY_SIDE)}
    return [done[key] for key in sorted(done)]


def shape(samples: Sequence[str], alike: Sequence[str]) -> list[Row]:
    """How long they are, and how much they repeat."""
    ours, theirs = ([words(text) for text in texts] for texts in (samples, alike))

    def row(name: str, of: Callable[[Sequence[Sequence[str]]], str]) -> Row:
        return name, of(ours), of(theirs)

    def before(n: int) -> Row:
        name = f"{n}-grams that stood in the text before"
        return row(name, lambda texts: f"{statistics.mean(repeated(text, n) for text in texts):.1%}")

    return [
        row("words, median", lambda texts: f"{statistics.median(map(len, texts)):.0f}"),
        before(2),
        before(4),
        row("different 2-grams among those of all texts", lambda texts: f"{distinct(texts, 2):.1%}"),
    ]


def reciting(train: Sequence[Path], samples: Sequence[str], alike: Sequence[str]) -> list[Row]:
    """How much of them stands in the training text."""
    documents = [example.text for example in read_examples(train)]
    rows = recited(Words(), documents, samples, alike, "words", (4, 8, 16))
    return rows + recited(characters, documents, samples, alike, "characters", ())


def recited(
    numbers: Callable[[str], Numbers],
    documents: Sequence[str],
    samples: Sequence[str],
    alike: Sequence[str],
    unit: str,
    sizes: Sequence[int],
) -> list[Row]:
    """The share of n-grams of these sizes, and the longest run, in such units."""
    training = Training(numbers(text) for text in documents)
    ours, theirs = ([numbers(text) for text in texts] for texts in (samples, alike))
    rows: list[Row] = []
    for n in sizes:
        mine, yours = (f"{training.recited(texts, n):.1%}" for texts in (ours, theirs))
        rows.append((f"{n}-grams of {unit} that stand in the training text", mine, yours))
    runs = training.longest([*ours, *theirs])
    mine, yours = (
        f"{statistics.median(run):.0f} (at most {max(run)})" for run in (runs[: len(ours)], runs[len(ours) :])
    )
    return [*rows, (f"longest run of {unit} from the training text, median", mine, yours)]


def following(loaded: LoadedModel, options: argparse.Namespace) -> list[Row]:
    """How often a reply is about what was asked for."""
    template = find_template(loaded.folder)
    if template is None:
        return []
    form = TemplateFormat(template, loaded.tokenizer)
    asked = [form.encode(form.render([Message("user", REQUEST.format(thing=thing))])) for thing in THINGS]
    replies = [one.text for one in write(loaded, asked * ASKED, options)]
    named = [[names(reply, thing) for thing in THINGS] for reply in replies]
    right = [row[n % len(THINGS)] for n, row in enumerate(named)]
    others = [one for n, row in enumerate(named) for place, one in enumerate(row) if place != n % len(THINGS)]
    return [("replies that name the thing asked for; right: replies to other requests", share(right), share(others))]


if __name__ == "__main__":
    main()
