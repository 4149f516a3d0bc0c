"""Compare a story model's samples with held-out text: prediction, repetition, endings and recitation.

    python tests/bench/judge.py -m llama-tales-12m --train stories.train.jsonl.xz --valid stories.valid.jsonl.xz

Samples use the model's default sampling settings and the seeds 0, 1, 2, … Half of them start from an empty prompt, half
from the first words of a held-out document, which are not measured. The column "held-out" gives the same measures for
held-out documents cut to the samples' lengths: the beginnings of other documents, and the actual continuations of those
used as prompts. A model with a chat template also gets requests for stories about things; the table shows how often a
reply names its thing, and how often replies to other requests do. Takes minutes, and 4 GB of memory for 60 MB of
training text.
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
    compressed_bits,
    distinct,
    ends_well,
    names,
    repeated,
    words,
)

BATCH_SIZE = 32
PROMPT_WORDS = 8  # words of a held-out document that form a sample's prompt
THINGS = (
    *("lighthouse", "dragon", "kitten", "robot", "garden", "rabbit", "princess", "boat", "snowman", "owl"),
    *("teacher", "castle", "bicycle", "spider", "moon", "horse", "cake", "pirate", "train", "bear"),
)
REPLIES = 10  # for each thing
REQUEST = "Write a bedtime story about a {thing}."
Row = tuple[str, str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="model to judge")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="files the model was trained on")
    parser.add_argument("--valid", type=Path, nargs="+", required=True, help="held-out files")
    parser.add_argument("--samples", type=int, default=100, help="number of samples")
    parser.add_argument("-n", "--max-tokens", type=int, default=800, help="tokens per sample, at most")
    options = parser.parse_args()
    loaded = load(options.model)
    held_out = [example.text for example in read_examples(options.valid)]
    rows = prediction(loaded, held_out)
    prompts = [" ".join(text.split(" ")[:PROMPT_WORDS]) for text in held_out[: options.samples // 2]]
    unprompted = options.samples - len(prompts)
    generated = generate(loaded, [loaded.prompt_ids(text) for text in [""] * unprompted + prompts], options)
    samples = [sample.text for sample in generated]
    beginnings = islice(cycle(held_out[len(prompts) :] or held_out), unprompted)
    continuations = [text[len(prompt) :] for text, prompt in zip(held_out, prompts, strict=False)]
    originals = [*beginnings, *continuations]
    originals = [cut(text, len(words(sample))) for text, sample in zip(originals, samples, strict=True)]
    rows += repetition(samples, originals)
    complete = [ends_well(sample.text) and sample.finish == "stop_token" for sample in generated]
    name = f"samples that end within {options.max_tokens} tokens and with a complete sentence"
    rows.append((name, percent(complete), percent([ends_well(text) for text in held_out])))
    rows += recitation(options.train, samples, originals)
    rows += instruction_following(loaded, options)
    print("| | samples | held-out |\n|---|---|---|")
    for name, ours, theirs in rows:
        print(f"| {name} | {ours} | {theirs} |")


def prediction(loaded: LoadedModel, held_out: Sequence[str]) -> list[Row]:
    """Return bits per byte of held-out text, of the model and of general compressors."""
    end = loaded.model.config.eos_token_ids[0]
    encoded = [Encoded([*loaded.prompt_ids(text), end]) for text in held_out]
    size = sum(len(text.encode()) for text in held_out)
    result = validate(loaded.model, encoded, size, precision=torch.float32)
    compressors = [(f"bits per byte, {name}", "", f"{bits:.3f}") for name, bits in compressed_bits(held_out).items()]
    return [("bits per byte, the model", "", f"{result.bits_per_byte:.4f}"), *compressors]


def cut(text: str, count: int) -> str:
    """Return the text up to the end of its ``count``-th word."""
    matches = list(islice(WORD.finditer(text), count))
    return text[: matches[-1].end()] if matches else ""


def percent(values: Sequence[bool]) -> str:
    return f"{statistics.mean(values):.0%}"


def generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], options: argparse.Namespace) -> list[GeneratedText]:
    """Generate one text for each prompt."""
    filters = [*loaded.vocabulary_filter(), *filter_chain(list(FILTERS), loaded.defaults.sampling)]
    requests = [Request(n, ids, Sampler(filters, n), options.max_tokens) for n, ids in enumerate(prompts)]
    done = {step.request.key: step.text for step in generate_batch(loaded, requests, BATCH_SIZE)}
    return [done[key] for key in sorted(done)]


def repetition(samples: Sequence[str], originals: Sequence[str]) -> list[Row]:
    """Return the length of the texts and how much they repeat."""
    ours, theirs = ([words(text) for text in texts] for texts in (samples, originals))

    def row(name: str, measure: Callable[[Sequence[Sequence[str]]], str]) -> Row:
        return name, measure(ours), measure(theirs)

    def repeated_row(n: int) -> Row:
        name = f"{n}-grams that occur earlier in the text"
        return row(name, lambda texts: f"{statistics.mean(repeated(text, n) for text in texts):.1%}")

    return [
        row("words, median", lambda texts: f"{statistics.median(map(len, texts)):.0f}"),
        repeated_row(2),
        repeated_row(4),
        row("distinct 2-grams over all texts", lambda texts: f"{distinct(texts, 2):.1%}"),
    ]


def recitation(train: Sequence[Path], samples: Sequence[str], originals: Sequence[str]) -> list[Row]:
    """Return how much of the texts occurs in the training text."""
    documents = [example.text for example in read_examples(train)]
    rows = recitation_by_unit(Words(), documents, samples, originals, "words", (4, 8, 16))
    return rows + recitation_by_unit(characters, documents, samples, originals, "characters", ())


def recitation_by_unit(
    numbers: Callable[[str], Numbers],
    documents: Sequence[str],
    samples: Sequence[str],
    originals: Sequence[str],
    unit: str,
    sizes: Sequence[int],
) -> list[Row]:
    """Return the share of n-grams of each size and the longest run that occur in the training text, in ``unit``."""
    training = Training(numbers(text) for text in documents)
    ours, theirs = ([numbers(text) for text in texts] for texts in (samples, originals))
    rows: list[Row] = []
    for n in sizes:
        mine, yours = (f"{training.recited(texts, n):.1%}" for texts in (ours, theirs))
        rows.append((f"{n}-grams of {unit} that occur in the training text", mine, yours))
    runs = training.longest([*ours, *theirs])
    mine, yours = (
        f"{statistics.median(run):.0f} (at most {max(run)})" for run in (runs[: len(ours)], runs[len(ours) :])
    )
    return [*rows, (f"longest run of {unit} from the training text, median", mine, yours)]


def instruction_following(loaded: LoadedModel, options: argparse.Namespace) -> list[Row]:
    """Return how often a reply names the requested thing, and how often the replies to other requests name it."""
    template = find_template(loaded.folder)
    if template is None:
        return []
    chat = TemplateFormat(template, loaded.tokenizer)
    prompts = [chat.encode(chat.render([Message("user", REQUEST.format(thing=thing))])) for thing in THINGS]
    replies = [reply.text for reply in generate(loaded, prompts * REPLIES, options)]
    named = [[names(reply, thing) for thing in THINGS] for reply in replies]
    requested = [row[n % len(THINGS)] for n, row in enumerate(named)]
    others = [value for n, row in enumerate(named) for i, value in enumerate(row) if i != n % len(THINGS)]
    name = "replies that name the requested thing; in the last column: replies to other requests"
    return [(name, percent(requested), percent(others))]


if __name__ == "__main__":
    main()
