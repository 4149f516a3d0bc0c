"""Make the data on which the shipped model is fine-tuned: requests with stories, and preference pairs.

    python docs/make_requests.py stories.train.jsonl.xz requests.jsonl
    python docs/make_requests.py --pairs stories.train.jsonl.xz pairs.jsonl

A story's own prompt is kept one time in three. Otherwise the story gets a generated request for its topic: the nouns
that are typical of it. A word counts as a noun if it follows an article and precedes punctuation or a word that often
follows a noun.

With --pairs: a request, a story that mentions its topic early, and a story of the same kind that never mentions it.
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
KEEP_PROMPT = 1 / 3  # probability that a story keeps its own prompt
TWO_TOPICS = 1 / 3  # probability that a request names two topics
ARTICLE = re.compile(
    r"\b(a|an|the) ([a-z]{3,})(?=[.,;!?]| (?:was|is|had|and|of|in|on|that|who|said|with|to|named|called)\b)"
)
NAMED = re.compile(
    r"\b(girl|boy|man|woman|fox|rabbit|bear|dog|cat|mouse|bird|squirrel|owl) (?:named|called) ([A-Z][a-z]{2,})\b"
)
MAX_PAIRS = 2400
EARLY_WORDS, EARLY_MENTIONS = 180, 2  # the chosen story of a pair mentions its topic this often in its first words
MIN_MENTIONS = 3  # of a topic in its story
MIN_INDEFINITE = 0.04  # fraction of "a" and "an" among the articles of a countable noun
NOT_TOPICS = re.compile(
    "day|night|time|end|way|world|people|place|one|others?|story|tale|moment|things?|rest|same|old|young|big|few|lot|while"
)

Story = dict[str, str]


@dataclass(frozen=True)
class NounCounts:
    """The number of stories, and the number of stories in which each countable noun occurs."""

    stories: int
    containing: Mapping[str, int]


def nouns_of(text: str) -> Counter[str]:
    """Return how often each noun occurs in a text after an article."""
    return Counter(match[2] for match in ARTICLE.finditer(text.lower()) if not NOT_TOPICS.fullmatch(match[2]))


def countable_nouns(stories: list[str]) -> set[str]:
    """Return the nouns that often follow "a" or "an"."""
    articles: dict[str, Counter[str]] = defaultdict(Counter)
    for story in stories:
        for article, noun, *_ in ARTICLE.findall(story.lower()):
            articles[noun]["the" if article == "the" else "a"] += 1
    return {noun for noun, counts in articles.items() if counts["a"] >= MIN_INDEFINITE * counts.total()}


def topics(text: str, nouns: NounCounts, rng: random.Random) -> list[str]:
    """Return up to two topics of a story, such as "a fox" or "a girl named Lily"."""
    found = [f"a {kind} named {name}" for kind, name in NAMED.findall(text)[:1]]
    mentions = {
        noun: len(re.findall(rf"\b{noun}s?\b", text.lower())) for noun in nouns_of(text) if noun in nouns.containing
    }
    frequent = [noun for noun, count in mentions.items() if count >= MIN_MENTIONS]
    ranked = sorted(frequent, key=lambda noun: -mentions[noun] * math.log(nouns.stories / nouns.containing[noun]))
    for noun in ranked[:2]:
        found.append(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}")
    if len(found) > 2:
        found = rng.sample(found, 2)
    return found


def random_request(kind: str, about: list[str], rng: random.Random) -> str:
    """Return a random request for a story of this kind about one or two of the topics."""
    topic = " and ".join(about[: 2 if rng.random() < TWO_TOPICS else 1])
    text = rng.choice(REQUESTS).format(kind=rng.choice([*KINDS.get(kind, []), "story"]), topic=topic)
    return text[0].upper() + text[1:]


def with_requests(stories: list[Story], nouns: NounCounts, rng: random.Random) -> Iterator[Story]:
    """Yield each story with its own or a generated request, or as a plain text if it has neither."""
    for story in stories:
        prompt, about = story.get("prompt"), topics(story["text"], nouns, rng)
        if about and (prompt is None or rng.random() >= KEEP_PROMPT):
            prompt = random_request(story.get("kind", ""), about, rng)
        yield {"text": story["text"]} if prompt is None else {"prompt": prompt, "completion": story["text"]}


def pairs(stories: list[Story], nouns: NounCounts, rng: random.Random) -> Iterator[Story]:
    """Yield preference pairs: a request, a story that mentions its topic early, and the next story of that kind.

    The stories of a kind form a ring, so nearly every story is chosen once and rejected once, and the model cannot
    learn to prefer some stories in general. Pairs whose rejected story mentions the topic are skipped.
    """
    rings: dict[str, list[tuple[str, str, re.Pattern[str]]]] = defaultdict(list)
    for story in rng.sample(stories, len(stories)):
        start = " ".join(story["text"].split(" ")[:EARLY_WORDS])
        for topic in topics(story["text"], nouns, rng)[:1]:
            mention = re.compile(rf"\b{topic.split()[-1]}", re.IGNORECASE)
            if len(mention.findall(start)) >= EARLY_MENTIONS and sum(map(len, rings.values())) < MAX_PAIRS:
                rings[story.get("kind", "")].append((story["text"], topic, mention))
    for kind, ring in rings.items():
        for (text, topic, mention), (other, *_) in zip(ring, ring[1:] + ring[:1], strict=True):
            if not mention.search(other):
                yield {"prompt": random_request(kind, [topic], rng), "chosen": text, "rejected": other}


def main(source: Path, target: Path, make: Callable[..., Iterator[Story]]) -> None:
    """Write what ``make`` yields for the stories of ``source`` (.jsonl.xz) to ``target``; the same every time."""
    with lzma.open(source, "rt", encoding="utf-8") as lines:
        stories = [json.loads(line) for line in lines]
    texts = [story["text"] for story in stories]
    countable = countable_nouns(texts)
    nouns = NounCounts(len(stories), Counter(noun for text in texts for noun in nouns_of(text) if noun in countable))
    with target.open("w", encoding="utf-8") as out:
        for line in make(stories, nouns, random.Random(0)):
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=Path, help="stories as JSON Lines (.jsonl.xz), with a text and perhaps a kind and a prompt"
    )
    parser.add_argument("target", type=Path, help="the JSON Lines file to write")
    parser.add_argument(
        "--pairs", dest="make", action="store_const", const=pairs, default=with_requests, help="make preference pairs"
    )
    args = parser.parse_args()
    main(args.source, args.target, args.make)
