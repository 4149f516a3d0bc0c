"""Stories -> requests and stories: how the text is made on which the shipped model learns to follow a request.

    python docs/make_requests.py stories.train.jsonl.xz requests.jsonl
    python docs/make_requests.py --pairs stories.train.jsonl.xz pairs.jsonl

A story's own prompt is kept one time in three; otherwise it gets a request of ours, for what the story is about: the
nouns that stand out in it. Nouns are words that often follow an article and precede what follows a noun.

Pairs are for preference tuning: a request, a story that begins with what it asks for, and one of the same kind that
has nothing of it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

KINDS = {
    "generated-bedtime": ["bedtime story"],
    "generated-campfire": ["campfire story", "scary story"],
    "generated-child": ["children's story", "story for children"],
    "fable": ["fable"],
    "tinystory": ["short story", "little story", "story for small children"],
    "fairytale": ["fairy tale"],
    "picture-book": ["picture-book story", "short story"],
    "llama-slice-of-life": ["slice-of-life story"],
}
REQUESTS = [
    "Write a {kind} about {topic}.",
    "Write a {kind} about {topic}",
    "Write me a {kind} about {topic}.",
    "Please write a {kind} about {topic}.",
    "Tell me a {kind} about {topic}.",
    "Tell me a {kind} about {topic}",
    "Can you tell me a {kind} about {topic}?",
    "I would like a {kind} about {topic}.",
    "A {kind} about {topic}, please.",
    "{kind} about {topic}",
]
OWN = 1 / 3  # how often a story's own prompt is kept
TWICE = 1 / 3  # how often a request names two things
ARTICLE = re.compile(
    r"\b(a|an|the) ([a-z]{3,})(?=[.,;!?]| (?:was|is|had|and|of|in|on|that|who|said|with|to|named|called)\b)"
)
NAMED = re.compile(
    r"\b(girl|boy|man|woman|fox|rabbit|bear|dog|cat|mouse|bird|squirrel|owl) (?:named|called) ([A-Z][a-z]{2,})\b"
)
PAIRS = 2400  # at most
SOON, TWICE_SOON = 180, 2  # words of a story within which its topic stands so often, in pairs
LEAST_TIMES = 3  # that a noun stands in a story it is the topic of
ONE = 0.04  # how often at least the article of a noun is "a", where it is no plural
NO_TOPIC = re.compile(
    "day|night|time|end|way|world|people|place|one|others?|story|tale|moment|things?|rest|same|old|young|big|few|lot|while"
)

Story = dict[str, str]


@dataclass(frozen=True)
class Nouns:
    """Of so many stories: in how many each noun is of which there is one at a time."""

    stories: int
    among: Mapping[str, int]


def nouns_of(text: str) -> Counter[str]:
    """The words of a text that stand where nouns do, by how often."""
    return Counter(match[2] for match in ARTICLE.finditer(text.lower()) if not NO_TOPIC.fullmatch(match[2]))


def singular(stories: list[str]) -> set[str]:
    """The nouns of which there is one at a time."""
    articles: dict[str, Counter[str]] = defaultdict(Counter)
    for story in stories:
        for article, noun, *_ in ARTICLE.findall(story.lower()):
            articles[noun]["the" if article == "the" else "a"] += 1
    return {noun for noun, found in articles.items() if found["a"] >= ONE * found.total()}


def topics(text: str, nouns: Nouns, draw: random.Random) -> list[str]:
    """What a story is about, the clearest first: "a fox", "a girl named Lily"."""
    found = [f"a {kind} named {name}" for kind, name in NAMED.findall(text)[:1]]
    times = {noun: len(re.findall(rf"\b{noun}s?\b", text.lower())) for noun in nouns_of(text) if noun in nouns.among}
    often = [noun for noun, count in times.items() if count >= LEAST_TIMES]
    ranked = sorted(often, key=lambda noun: -times[noun] * math.log(nouns.stories / nouns.among[noun]))
    for noun in ranked[:2]:
        found.append(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}")
    if len(found) > 2:
        found = draw.sample(found, 2)
    return found


def request(kind: str, about: list[str], draw: random.Random) -> str:
    """A request for a story of this kind."""
    topic = " and ".join(about[: 2 if draw.random() < TWICE else 1])
    text = draw.choice(REQUESTS).format(kind=draw.choice([*KINDS.get(kind, []), "story"]), topic=topic)
    return text[0].upper() + text[1:]


def requested(stories: list[Story], nouns: Nouns, draw: random.Random) -> Iterator[Story]:
    """Each story with its request, if there is one for it."""
    for story in stories:
        prompt, about = story.get("prompt"), topics(story["text"], nouns, draw)
        if about and (prompt is None or draw.random() >= OWN):
            prompt = request(story.get("kind", ""), about, draw)
        yield {"text": story["text"]} if prompt is None else {"prompt": prompt, "completion": story["text"]}


def pairs(stories: list[Story], nouns: Nouns, draw: random.Random) -> Iterator[Story]:
    """Requests for stories that soon come to their topic, each with its story and the next of that kind without it.

    So nearly every story is once chosen and once rejected: what is learnt is not to like some stories better.
    """
    told: dict[str, list[tuple[str, str, re.Pattern[str]]]] = defaultdict(list)
    for story in draw.sample(stories, len(stories)):
        soon = " ".join(story["text"].split(" ")[:SOON])
        for topic in topics(story["text"], nouns, draw)[:1]:
            thing = re.compile(rf"\b{topic.split()[-1]}", re.IGNORECASE)
            if len(thing.findall(soon)) >= TWICE_SOON and sum(map(len, told.values())) < PAIRS:
                told[story.get("kind", "")].append((story["text"], topic, thing))
    for kind, ring in told.items():
        for (text, topic, thing), (other, *_) in zip(ring, ring[1:] + ring[:1], strict=True):
            if not thing.search(other):
                yield {"prompt": request(kind, [topic], draw), "chosen": text, "rejected": other}


def main(source: Path, target: Path, made: Callable[..., Iterator[Story]]) -> None:
    with lzma.open(source, "rt", encoding="utf-8") as lines:
        stories = [json.loads(line) for line in lines]
    texts = [story["text"] for story in stories]
    known = singular(texts)
    nouns = Nouns(len(stories), Counter(noun for text in texts for noun in nouns_of(text) if noun in known))
    with target.open("w", encoding="utf-8") as out:
        for line in made(stories, nouns, random.Random(0)):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pairs", dest="made", action="store_const", const=pairs, default=requested)
    given = parser.parse_args()
    main(given.source, given.target, given.made)
