"""The corpus and recipes of ``llmcli train --demo``, small enough to train a model in two minutes.

All stories have the same plot, filled in from templates. Half of the stories end happily; the preference pairs prefer
happy endings. The text was written for llmcli.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from llmcli.files.atomic import replace_text
from llmcli.train.recipe import Method, Recipe, make_recipe

STORIES = 3000
PAIRS = 300
HEROES = ["fox", "hen", "bear", "frog", "mouse", "cat", "goat", "wolf", "crow", "hare", "duck", "snail"]
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Edda", "Finn", "Gus", "Ida", "Juna", "Kim", "Lou", "Mio", "Nell", "Otto", "Pia"]
THINGS = ["kite", "drum", "lamp", "key", "boat", "bell", "hat", "spoon", "map", "coin", "ball", "cup"]
PLACES = ["river", "hill", "old mill", "barn", "forest", "garden", "sea", "bridge", "well", "market"]
MOODS = ["small", "brave", "shy", "clever", "little", "merry", "sleepy", "proud"]

BEGINNINGS = [
    "Once there was a {mood} {hero} named {name}.",
    "There was once a {mood} {hero}, and its name was {name}.",
    "By the {place} lived a {mood} {hero} named {name}.",
    "A {mood} {hero} named {name} lived near the {place}.",
]
LOVES = [
    "{name} had a {thing} and took it everywhere.",
    "Nothing was dearer to {name} than a {thing}.",
    "Every morning {name} played with a {thing}.",
    "{name} owned one thing only, a {thing}.",
]
LOSSES = [
    "One day the {thing} was gone.",
    "Then a storm came and carried the {thing} away.",
    "One night somebody took the {thing}.",
    "But one day {name} lost the {thing} by the {far}.",
]
SEARCHES = [
    '{name} asked a {other}, "Have you seen my {thing}?"',
    "{name} looked behind the {far}, and a {other} helped.",
    '"I will help you look," said a {other}.',
    "{name} and a {other} looked for it all day.",
]
HAPPY = [
    "At last they found the {thing}, and {name} danced for joy.",
    "They found it by the {far}, and {name} and the {other} became friends.",
    'There it was! "Thank you," said {name}, and they laughed.',
    "The {other} found the {thing}, and everyone was glad.",
]
SAD = [
    "They never found the {thing}, and {name} cried.",
    "The {thing} was broken, and {name} went home alone.",
    "It grew dark, and {name} was lost and afraid.",
    "The {other} ran away with the {thing}, and nobody was glad.",
]
REQUESTS = [
    "Tell a story about a {hero} and a {thing}.",
    "Write about a {hero} who loses a {thing}.",
    "I want to hear of a {hero} named {name} and a {thing}.",
]
# The prompts for the samples shown during training, by method.
SAMPLES: dict[Method, str] = {
    "pretrain": "Once there was",
    "sft": "Tell a story about a fox and a kite.",
    "dpo": "Tell a story about a fox and a kite.",
}


def recipes() -> list[Recipe]:
    """Return the recipes of the three stages (pretrain, sft, dpo), which take a minute and a half on two cores."""
    common = {"context": 128, "batch_size": 16}
    shape = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return [
        make_recipe({**shape, **common, "tokens": 1_000_000, "learning_rate": 1e-2}, positions=None),
        make_recipe({**common, "method": "sft", "tokens": 400_000, "learning_rate": 5e-3}, positions=common["context"]),
        make_recipe(
            {**common, "method": "dpo", "batch_size": 8, "tokens": 100_000, "learning_rate": 1e-3},
            positions=common["context"],
        ),
    ]


def write_corpus(path: Path) -> None:
    """Write the corpus to ``path`` as JSON Lines. Raises LlmcliError if it cannot be written."""
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines()))


def lines() -> Iterator[dict[str, str]]:
    """Yield the examples of the corpus, stories with prompts and then preference pairs; the same in every call."""
    rng = random.Random(0)
    for number in range(STORIES):
        versions, request = story(rng)
        yield {"prompt": request, "completion": versions[number % 2]}
    for _ in range(PAIRS):
        (happy, sad), request = story(rng)
        yield {"prompt": request, "chosen": happy, "rejected": sad}


def story(rng: random.Random) -> tuple[tuple[str, str], str]:
    """Return a random story with a happy and with a sad ending, and a request for it."""
    hero, other = rng.sample(HEROES, 2)
    place, far = rng.sample(PLACES, 2)
    words = {
        **{"hero": hero, "other": other, "place": place, "far": far},
        **{"name": rng.choice(NAMES), "thing": rng.choice(THINGS), "mood": rng.choice(MOODS)},
    }
    beginning = [rng.choice(part) for part in (BEGINNINGS, LOVES, LOSSES, SEARCHES)]
    happy, sad = (" ".join([*beginning, rng.choice(endings)]).format(**words) for endings in (HAPPY, SAD))
    return (happy, sad), rng.choice(REQUESTS).format(**words)
