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
from collections.abc import Callable, Container, Iterator, Mapping
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
CLEAREST = 3  # nouns of a story from which its topics are drawn
PAIRS = 2400  # at most
SOON, TWO = 180, 2  # words of a story within which its topic stands at least twice, in pairs
LEAST_TIMES = 3  # that a noun stands in a story it is the topic of
ONE = 0.15  # how often at least the article of a noun is "a", where it is not "the" alone
MORE_TIMES = 5  # the same as LEAST_TIMES for nouns of "the" alone: there are hardly more of them that make a story
# The last are superlatives and qualities; a forest and a chest are lost with them.
NO_TOPIC = re.compile(
    "day|night|time|end|way|world|people|place|one|others?|story|tale|moment|things?|rest|same|old|young|big|few|lot|while"
    "|edge|top|middle|cent(?:er|re)|bottom|back|side|ground|air|weight|smell|scent|depths|value|surface|importance|past"
    "|moral|first|last|next|two|three|beginning|unknown|better|future|help|midst|sounds?|distance|small|dark|wise|magic"
    "|peace|food|[a-z]+(?:est|ness)"
)

Story = dict[str, str]


@dataclass(frozen=True)
class Nouns:
    """Of so many stories: in how many each noun is, and its article."""

    stories: int
    among: Mapping[str, int]
    articles: Mapping[str, str]


def nouns_of(text: str) -> Counter[str]:
    """The words of a text that stand where nouns do, by how often."""
    return Counter(match[2] for match in ARTICLE.finditer(text.lower()) if not NO_TOPIC.fullmatch(match[2]))


def one_of(noun: str) -> str:
    """The article of one of many."""
    return "an" if noun[0] in "aeiou" else "a"


def articles(stories: list[str], nouns: Container[str]) -> dict[str, str]:
    """Of each noun the article that a request has for it; up to two words may stand between ("a wise old owl")."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for story in stories:
        words = re.findall("[a-z]+", story.lower())
        for place, word in enumerate(words):
            if word in ("a", "an", "the"):
                for noun in words[place + 1 : place + 4]:
                    if noun in nouns:
                        found[noun]["the" if word == "the" else "a"] += 1
    one = {noun: times["a"] >= ONE * times.total() for noun, times in found.items()}
    plural = {noun for noun in one if noun[-1] == "s" and noun[:-1] in one}
    return {noun: one_of(noun) if one[noun] and noun not in plural else "the" for noun in one}


def topics(text: str, nouns: Nouns, draw: random.Random) -> list[str]:
    """What a story is about, at most two things: "a fox", "the sea", "a girl named Lily"."""
    found = [f"{one_of(kind)} {kind} named {name}" for kind, name in NAMED.findall(text)[:1]]
    times = {one: len(re.findall(rf"\b{one}s?\b", text.lower())) for one in nouns_of(text) if one in nouns.articles}
    least = {"the": MORE_TIMES}
    often = [one for one, count in times.items() if count >= least.get(nouns.articles[one], LEAST_TIMES)]
    ranked = sorted(often, key=lambda one: -times[one] * math.log(nouns.stories / nouns.among[one]))
    found += [f"{nouns.articles[one]} {one}" for one in ranked[:CLEAREST]]
    return draw.sample(found, min(len(found), 2))


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
            if len(thing.findall(soon)) >= TWO and sum(map(len, told.values())) < PAIRS:
                told[story.get("kind", "")].append((story["text"], topic, thing))
    for kind, ring in told.items():
        for (text, topic, thing), (other, *_) in zip(ring, ring[1:] + ring[:1], strict=True):
            if not thing.search(other):
                yield {"prompt": request(kind, [topic], draw), "chosen": text, "rejected": other}


def main(source: Path, target: Path, made: Callable[..., Iterator[Story]]) -> None:
    with lzma.open(source, "rt", encoding="utf-8") as lines:
        stories = [json.loads(line) for line in lines]
    texts = [story["text"] for story in stories]
    among = Counter(noun for text in texts for noun in nouns_of(text))
    nouns = Nouns(len(stories), among, articles(texts, among))
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
