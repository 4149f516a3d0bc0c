"""How the shipped model's requests and pairs are made, on stories of a few words."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

from docs.make_requests import Nouns, main, pairs, requested, singular, topics

THINGS = ("fox", "kite", "owl", "boat", "drum", "cat")


def story(thing: str) -> dict[str, str]:
    text = f"There was {'an' if thing == 'owl' else 'a'} {thing}. The {thing} was small. Everybody liked the {thing}."
    return {"text": text, "kind": "fable"}


STORIES = [story(thing) for thing in THINGS]
NOUNS = Nouns(len(THINGS), dict.fromkeys(THINGS, 1))


def test_a_noun_of_which_there_is_one_at_a_time_follows_a() -> None:
    text = "A fox, a fox. The sea was wide, " + "and the sea was deep, " * 30
    assert singular([text]) == {"fox"}


def test_a_topic_stands_out_in_its_story() -> None:
    assert topics(STORIES[0]["text"] + " The kite was red.", NOUNS, random.Random(0)) == ["a fox"]
    named = topics("A girl named Lily had a fox. The fox was small, and the fox had a cub.", NOUNS, random.Random(0))
    assert sorted(named) == ["a fox", "a girl named Lily"]


def test_a_story_without_topic_keeps_its_prompt_or_has_none() -> None:
    bare = [{"text": "It rained."}, {"text": "It rained.", "prompt": "Weather?"}]
    assert list(requested(bare, NOUNS, random.Random(0))) == [
        {"text": "It rained."},
        {"prompt": "Weather?", "completion": "It rained."},
    ]
    (asked,) = requested([STORIES[2]], NOUNS, random.Random(0))
    assert "an owl" in asked["prompt"]
    assert asked["completion"] == STORIES[2]["text"]


def test_each_story_is_once_chosen_and_once_rejected() -> None:
    found = list(pairs(STORIES, NOUNS, random.Random(0)))
    texts = sorted(one["text"] for one in STORIES)
    assert sorted(pair["chosen"] for pair in found) == texts
    assert sorted(pair["rejected"] for pair in found) == texts
    for pair in found:
        (thing,) = (one for one in THINGS if f" {one}" in pair["prompt"])
        assert (thing in pair["chosen"], thing in pair["rejected"]) == (True, False)


def test_a_rejected_story_has_nothing_of_what_was_asked_for() -> None:
    assert list(pairs([story("fox"), story("fox")], NOUNS, random.Random(0))) == []


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    source = tmp_path / "stories.jsonl.xz"
    with lzma.open(source, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in STORIES)
    for made in (requested, pairs):
        for name in ("one", "two"):
            main(source, tmp_path / name, made)
        assert (tmp_path / "one").read_text(encoding="utf-8") == (tmp_path / "two").read_text(encoding="utf-8")
