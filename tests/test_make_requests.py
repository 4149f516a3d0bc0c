"""docs/make_requests.py, on stories of a few words."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

from docs.make_requests import NounCounts, countable_nouns, main, pairs, topics, with_requests

THINGS = ("fox", "kite", "owl", "boat", "drum", "cat")


def story(thing: str) -> dict[str, str]:
    text = f"There was {'an' if thing == 'owl' else 'a'} {thing}. The {thing} was small. Everybody liked the {thing}."
    return {"text": text, "kind": "fable"}


STORIES = [story(thing) for thing in THINGS]
NOUNS = NounCounts(len(THINGS), dict.fromkeys(THINGS, 1))


def test_countable_nouns_follow_an_indefinite_article() -> None:
    text = "A fox, a fox. The sea was wide, " + "and the sea was deep, " * 30
    assert countable_nouns([text]) == {"fox"}


def test_topics_are_the_most_typical_nouns_and_a_named_hero() -> None:
    assert topics(STORIES[0]["text"] + " The kite was red.", NOUNS, random.Random(0)) == ["a fox"]
    named = topics("A girl named Lily had a fox. The fox was small, and the fox had a cub.", NOUNS, random.Random(0))
    assert sorted(named) == ["a fox", "a girl named Lily"]


def test_a_story_without_a_topic_keeps_its_prompt_or_has_none() -> None:
    bare = [{"text": "It rained."}, {"text": "It rained.", "prompt": "Weather?"}]
    assert list(with_requests(bare, NOUNS, random.Random(0))) == [
        {"text": "It rained."},
        {"prompt": "Weather?", "completion": "It rained."},
    ]
    (example,) = with_requests([STORIES[2]], NOUNS, random.Random(0))
    assert "an owl" in example["prompt"]
    assert example["completion"] == STORIES[2]["text"]


def test_each_story_is_chosen_once_and_rejected_once() -> None:
    found = list(pairs(STORIES, NOUNS, random.Random(0)))
    texts = sorted(story["text"] for story in STORIES)
    assert sorted(pair["chosen"] for pair in found) == texts
    assert sorted(pair["rejected"] for pair in found) == texts
    for pair in found:
        (thing,) = (thing for thing in THINGS if f" {thing}" in pair["prompt"])
        assert (thing in pair["chosen"], thing in pair["rejected"]) == (True, False)


def test_a_rejected_story_never_mentions_the_topic() -> None:
    assert list(pairs([story("fox"), story("fox")], NOUNS, random.Random(0))) == []


def test_the_output_is_deterministic(tmp_path: Path) -> None:
    source = tmp_path / "stories.jsonl.xz"
    with lzma.open(source, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(story) + "\n" for story in STORIES)
    for make in (with_requests, pairs):
        for name in ("one", "two"):
            main(source, tmp_path / name, make)
        assert (tmp_path / "one").read_text(encoding="utf-8") == (tmp_path / "two").read_text(encoding="utf-8")
