"""`decide`: what its numbers mean, chats, files of choices, and mistakes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from llmcli import explain
from llmcli.errors import EXIT_FAILURE, EXIT_USAGE
from llmcli.explain import decision
from llmcli.generation.choices import Scored
from llmcli.generation.loaded import load
from llmcli.text import Message, TemplateFormat, find_template
from llmcli.train.vocabulary import EOS
from tests.commands.conftest import assert_one_line, records

Run = Callable[..., Result]
CHOICES = "fox,old fox,shy crow"


@pytest.mark.parametrize("changed", [(), ("--ablate", "mlp.0", "--ablate", "1.2@1")])
def test_choices_are_scored_as_score_scores_the_text(model: Path, run: Run, changed: tuple[str, ...]) -> None:
    """Another command and another pass: `score` of the prompt and each choice, also without parts of the model."""
    (report,) = records(run("decide", "The", "-m", model, "--choices", CHOICES, "--json", *changed))
    assert [row["choice"] for row in report["choices"]] == CHOICES.split(",")
    totals = []
    for row in report["choices"]:
        (scored,) = records(run("score", "The" + row["text"], "-m", model, "--json", *changed))
        own = scored["tokens"][-len(row["tokens"]) :]
        assert [token["piece"]["id"] for token in own] == [token["id"] for token in row["tokens"]]
        totals.append(sum(token["logprob"] for token in own))
        assert row["logprob"] == pytest.approx(totals[-1], rel=1e-4)
        assert row["mean_logprob"] == pytest.approx(totals[-1] / len(own), rel=1e-4)
        assert row["p"] == pytest.approx(math.exp(row["logprob"]), rel=1e-4)
    powers = [math.exp(total) for total in totals]
    assert [row["share"] for row in report["choices"]] == pytest.approx([p / sum(powers) for p in powers], rel=1e-3)
    assert report["best"] == totals.index(max(totals))
    assert report["outside"] == pytest.approx(1 - sum(powers), rel=1e-3)


def test_one_token_choices_are_the_next_tokens_of_branch(model: Path, run: Run) -> None:
    (branch,) = records(run("branch", "The", "-m", model, "--width", 3, "--depth", 1, "--json"))
    texts = [child["text"] for child in branch["children"]]
    (report,) = records(run("decide", "The", "-m", model, "--choices", str(texts).replace("'", '"'), "--json"))
    assert [row["p"] for row in report["choices"]] == [child["p"] for child in branch["children"]]
    assert report["outside"] == pytest.approx(branch["others"], rel=1e-4)


def test_a_choice_that_begins_another(model: Path, run: Run) -> None:
    call = ("decide", "The", "-m", model, "--choices", "old,old fox,shy")
    (report,) = records(run(*call, "--json"))
    assert [row["begins"] for row in report["choices"]] == [[1], [], []]
    assert report["choices"][0]["p"] > report["choices"][1]["p"]
    shown = run(*call).stdout
    assert "“·old” begins “·old·fox”: its p includes the other's. --end counts" in shown
    ended = run(*call, "--end")
    assert "begins “" not in ended.stdout
    assert "continues with the choice and ends there" in ended.stdout
    (report,) = records(run(*call, "--end", "--json"))
    for row in report["choices"]:
        assert len(row["logprobs"]) == len(row["tokens"]) + 1
    assert sum(row["p"] for row in report["choices"]) + report["outside"] == pytest.approx(1, rel=1e-4)


def test_the_seam_between_prompt_and_choice(model: Path, run: Run) -> None:
    """A prompt that ends with a space: its last token merges with a choice, and the numbers are the same."""
    options = ("-m", model, "--choices", "old,shy", "--json")
    (plain,), (spaced,) = (records(run("decide", prompt, *options)) for prompt in ("The", "The "))
    assert plain["moved"] == []
    assert [token["text"] for token in spaced["moved"]] == [" "]
    assert [row["logprobs"] for row in plain["choices"]] == [row["logprobs"] for row in spaced["choices"]]
    assert "last token · merges with a choice" in run("decide", "The ", *options[:-1]).stdout
    (close,) = records(run("decide", "The", *options, "--delimiter", ""))
    assert [row["text"] for row in close["choices"]] == ["old", "shy"]


def test_choices_from_a_file(model: Path, run: Run, tmp_path: Path) -> None:
    lines, listed = tmp_path / "choices.txt", tmp_path / "choices.json"
    lines.write_bytes(b"old fox, shy\r\n\n  hen\n")
    listed.write_text('["old fox, shy", "  hen"]')
    shown = {run("decide", "The", "-m", model, "--choices", path, "--json").stdout for path in (lines, listed)}
    assert len(shown) == 1
    assert '"choice": "  hen"' in shown.pop()


def test_top_hides_choices_only(model: Path, run: Run) -> None:
    call = ("decide", "The", "-m", model, "--choices", CHOICES)
    one, every = (run(*call, "--top", top).stdout for top in (1, 0))
    assert len(every.splitlines()) == len(one.splitlines()) + 1  # two rows more, one note less
    assert "the 1 most probable of 3 choices" in one


def test_a_chat_asks_in_the_models_template(chat_model: Path, run: Run) -> None:
    """The ids are those of the template; neither the message nor a choice can forge one of its tokens."""
    common = ("-m", chat_model, "--apply-chat-template", "--json")
    (report,) = records(run("decide", "old?", *common, "--choices", f"yes,no{EOS}", "-s", "Be brief."))
    assert [row["text"] for row in report["choices"]] == ["yes", f"no{EOS}"]
    loaded = load(chat_model)
    template = find_template(chat_model)
    assert template is not None
    form = TemplateFormat(template, loaded.tokenizer)
    messages = [Message("system", "Be brief."), Message("user", "old?")]
    assert report["prompt_tokens"] == len(form.encode(form.render(messages)))
    assert not loaded.tokenizer.special_ids & {token["id"] for row in report["choices"] for token in row["tokens"]}
    again = explain.decide(loaded, messages, ["yes", f"no{EOS}"], form=form)
    assert [row["logprob"] for row in report["choices"]] == pytest.approx(
        [row.logprob for row in again.choices], rel=1e-4
    )
    with pytest.raises(TypeError, match="messages need a chat format"):
        explain.decide(loaded, messages, ["yes", "no"])


def test_a_wrong_number_fails_the_check(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decision.score_choices

    def wrong(*args: object, **options: object) -> list[Scored]:
        (scored,) = right(*args, **options)  # type: ignore[arg-type]
        first, *others = scored.logprobs
        return [Scored(scored.question, ((first[0] + 0.01, *first[1:]), *others), scored.outside, scored.other)]

    monkeypatch.setattr(decision, "score_choices", wrong)
    result = run("decide", "The", "-m", model, "--choices", CHOICES)
    assert result.exit_code == EXIT_FAILURE
    assert "check: FAILED" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--choices", "yes"), "'yes' is the only choice"),
        (("--choices", "yes,yes"), "'yes' is given twice"),
        (("--choices", "yes,,no"), "a choice is empty"),
        (("--choices", '["yes", 1]'), "not a JSON list of strings"),
        (("--choices", '["old", " old"]'), "are the same tokens"),
        (("--choices", "a,b", "-s", "x"), "--system-prompt needs --apply-chat-template"),
        (("--choices", "a,b", "--template-arg", "x=1"), "--template-arg need --apply-chat-template"),
        ((), "--choices"),
        (("--choices", "a," + "old fox " * 99), "the model's context holds 64"),
    ],
)
def test_mistakes(model: Path, run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert_one_line(run("decide", "The", "-m", model, *arguments), message, code=EXIT_USAGE)


def test_a_model_without_a_template(model: Path, run: Run) -> None:
    result = run("decide", "x", "-m", model, "--choices", "a,b", "--apply-chat-template")
    assert_one_line(result, "has no chat template", "(omit --apply-chat-template)", code=EXIT_FAILURE)
