"""`tour --quiz`: answers that the tour's own numbers give, asked in a terminal and printed elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result

from llmcli import explain
from llmcli.cli import cli
from llmcli.explain import TourReport
from llmcli.generation.loaded import load
from llmcli.render import QuizQuestion, quiz_questions
from llmcli.render.text import token_label
from tests.commands.conftest import records
from tests.explain.reference import IDS, loaded
from tests.render.test_terminal import Tty
from tests.tiny import TinyFactory

Run = Callable[..., Result]
PROMPT = "The old fox met a hen by the river"


def answers_hold(report: TourReport, questions: Sequence[QuizQuestion]) -> None:
    """Compute each answer again, from other numbers of the report where there are some."""
    right = {question.stop: question.choices[question.answer] for question in questions}
    for question in questions:
        assert 2 <= len(question.choices) <= 4
        assert len(set(question.choices)) == len(question.choices)
    assert right[0] == str(len(report.tokens.tokens))
    cosines = {token_label(row.piece): row.centred for row in report.vectors.neighbours}
    assert cosines[right[1]] == max(cosines.values())
    same = report.position.in_order.piece == report.position.reversed.piece
    assert right[2] == ("yes" if same else "no")
    weights = [key.weight for key in report.head_at.keys]
    assert f"(position {weights.index(max(weights))})" in right[3]
    if report.forms:
        first = int(right[4])
        ranks = {row.layer: row.rank for row in report.lens.rows}
        assert {rank for layer, rank in ranks.items() if layer is not None and layer >= first} == {0}
        assert ranks[first - 1 if first else None] > 0
    else:
        assert float(right[4]) == pytest.approx(report.lens.rows[-1].p, abs=0.006)
    if 5 in right:
        ps = sorted((row.p for row in report.step.candidates), reverse=True)
        assert ps[1] in [row.p for row in report.step.candidates if token_label(row) == right[5]]
    if 6 in right:  # p ** 2 over the sum of squares is at most p over the largest p, and more than p
        assert report.step.candidates[0].p - 0.006 <= float(right[6]) <= 1
    assert right[7] == str([token.rank for token in report.loop[:6]].count(0))
    head = f"L{report.head_at.layer}.H{report.head_at.head}"
    (part,) = [part for part in report.why.parts if part.name == head]
    favored = report.why.token if part.difference >= 0 else report.why.other
    assert right[8] == token_label(favored)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "falcon_h1"])
def test_answers_are_those_of_the_numbers(tiny: TinyFactory, name: str) -> None:
    report = explain.tour(loaded(tiny(name)), " ".join(f"w{id}" for id in IDS[:12]))
    answers_hold(report, quiz_questions(report))


@pytest.fixture(scope="module")
def asked(model: Path) -> list[QuizQuestion]:
    report = explain.tour(load(model, dtype="float32"), PROMPT)
    questions = quiz_questions(report)
    answers_hold(report, questions)
    return questions


def played(model: Path, lines: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal without colors shows if these lines are typed."""
    screen = Tty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdin", Tty("".join(f"{line}\n" for line in lines)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["tour", PROMPT, "-m", str(model), "--quiz"], prog_name="llmcli")
    assert ended.value.code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())


def test_the_score_counts_right_answers(
    model: Path, asked: list[QuizQuestion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters and whole answers, in any case; a wrong answer, none, and one that is not a choice."""
    typed = ["abcd"[question.answer] for question in asked]
    typed[0] = asked[0].choices[asked[0].answer]
    typed[1] = typed[1].upper() + ")"
    typed[2] = "abcd"[1 - asked[2].answer]
    typed[3] = ""
    lines: list[str] = []
    for question, answer in zip(asked, typed, strict=True):
        lines += (["what?"] if question.stop == 4 else []) + [answer, ""]
    shown = played(model, lines, monkeypatch)
    assert f"You answered {len(asked) - 2} of {len(asked)} questions right." in shown
    assert shown.count("Right: ") == len(asked) - 2
    assert f"No, the answer is {asked[2].right}." in shown
    assert f"Answer {asked[3].right}." in shown
    assert shown.count("Type a to") == len(asked) + 1
    order = [shown.index(part) for part in ("Question 1", "1/9  ", "Right: ", "Question 2", "2/9  ", "9/9  ")]
    assert order == sorted(order)


@pytest.mark.parametrize("lines", [["q"], ["", "q"], ["a", "", "quit"]])
def test_it_can_be_quit(model: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = played(model, lines, monkeypatch)
    assert ("You answered" in shown) == (len(lines) > 1)
    assert "3/9  " not in shown


def test_without_a_terminal_each_answer_follows_its_stop(
    run: Run, model: Path, asked: list[QuizQuestion], tmp_path: Path
) -> None:
    result = run("tour", PROMPT, "-m", model, "--quiz")
    assert result.exit_code == 0
    assert "You answered" not in result.stdout
    places = []
    for number, question in enumerate(asked, start=1):
        stop = result.stdout.index(f"\n{number}/9  ")
        places += [result.stdout.index(f"\nQuestion {number}\n"), stop, result.stdout.index(question.right, stop)]
    assert places == sorted(places)
    picture = tmp_path / "tour.svg"
    (record,) = records(run("tour", PROMPT, "-m", model, "--quiz", "--json", "--save", picture))
    assert [(q["stop"], q["choices"][q["answer"]]) for q in record["quiz"]] == [
        (q.stop, q.choices[q.answer]) for q in asked
    ]
    assert "Question&#160;9" in picture.read_text(encoding="utf-8")
