"""Train a tokenizer and a small model on a made-up world, then ask it a question. Takes less than a minute.

python docs/examples/training.py
"""

import random
import tempfile
from pathlib import Path

import torch

import llmcli
from llmcli.train.corpus import read_corpus
from llmcli.train.loop import train
from llmcli.train.recipe import Recipe, Shape
from llmcli.train.run import begin_run

HOMES = {"fox": "forest", "frog": "pond", "bear": "cave", "hen": "barn", "crow": "tree"}
DEEDS = ["sleeps", "sings", "eats", "plays"]


def story(rng: random.Random) -> str:
    """A document: an animal, its home, and what it does there."""
    animal, home = rng.choice(list(HOMES.items()))
    return f"The {animal} lives in the {home}. Every day the {animal} {rng.choice(DEEDS)} there."


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    rng = random.Random(0)
    (folder / "stories.txt").write_text("<|endoftext|>".join(story(rng) for _ in range(2000)), encoding="utf-8")

    shape = Shape(vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    recipe = Recipe(shape=shape, context=64, batch_size=8, tokens=140_000)
    corpus = read_corpus([folder / "stories.txt"], [])
    run = begin_run(folder / "model", recipe, corpus, device=torch.device("cpu"))
    for metrics in train(run, folder / "model"):
        if metrics.step % 20 == 0:
            print(f"step {metrics.step} of {metrics.steps}: {metrics.loss:.2f} nats per token")

    loaded = llmcli.load(str(folder / "model"))
    for animal in HOMES:
        generation = llmcli.generate(loaded, f"The {animal} lives in the", max_new_tokens=20, temperature=0, stop=".")
        print(f"The {animal} lives in the{''.join(text for _, text in generation)}.")
