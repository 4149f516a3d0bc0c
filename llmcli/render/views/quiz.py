"""``tour --quiz``: before each stop a question that the stop answers, made from the loaded model's own numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from llmcli import explain
from llmcli.render.numbers import fixed
from llmcli.render.terminal import print_check, print_line
from llmcli.render.text import counted, one_line, token_label
from llmcli.render.views.tour import ROWS, TOUR_STOPS, WIDTH, ending_of, print_tour_stop

LETTERS = "abcd"


@dataclass(frozen=True)
class QuizQuestion:
    """A question about a stop of the tour, with the index of the right choice."""

    stop: int
    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def right(self) -> str:
        """The right choice with its letter."""
        return f"{LETTERS[self.answer]}) {self.choices[self.answer]}"

    def chosen(self, typed: str) -> int | None:
        """Return the index of the choice that was typed, as its letter or its text; None if it is none."""
        word = typed.strip().rstrip(").").strip()
        if len(word) == 1 and word.casefold() in LETTERS[: len(self.choices)]:
            return LETTERS.index(word.casefold())
        return self.choices.index(word) if word in self.choices else None


def quiz_questions(report: explain.TourReport) -> list[QuizQuestion]:
    """Return one question for each stop of a tour, except where the numbers leave nothing to choose from."""
    questions = (make(number, report) for number, make in enumerate(_QUESTIONS))
    return [question for question in questions if len(question.choices) > 1]


def print_question(question: QuizQuestion, stream: TextIO) -> None:
    """Print a question and its choices."""
    print_line(f"\nQuestion {question.stop + 1}", stream, "bold")
    print_line(textwrap.fill(" ".join(question.text.split()), WIDTH), stream)
    for letter, choice in zip(LETTERS, question.choices, strict=False):
        print_line(f"  {letter}) {choice}", stream)


def verdict(question: QuizQuestion, chosen: int | None) -> str:
    """Return whether an answer is right, and the right one. None: there was no answer."""
    if chosen == question.answer:
        return f"Right: {question.right}."
    return f"{'Answer' if chosen is None else 'No, the answer is'} {question.right}."


def print_quiz_score(right: int, asked: int, stream: TextIO) -> None:
    """Print how many questions were answered right."""
    print_line(f"\nYou answered {right} of {counted(asked, 'question')} right.", stream, "bold")


def print_quiz(report: explain.TourReport, stream: TextIO) -> None:
    """Print the whole tour: before each stop its question, after it the answer."""
    questions = {question.stop: question for question in quiz_questions(report)}
    for number in range(len(TOUR_STOPS)):
        if number in questions:
            print_question(questions[number], stream)
        print_tour_stop(report, stream, number)
        if number in questions:
            print_line(verdict(questions[number], None), stream, "bold")
    print_check(report.check, stream)


def _of_numbers(stop: int, text: str, right: int, others: Sequence[int]) -> QuizQuestion:
    """A question whose choices are numbers, in ascending order."""
    numbers = sorted({right, *[n for n in dict.fromkeys(others) if n >= 0 and n != right][: len(LETTERS) - 1]})
    return QuizQuestion(stop, text, tuple(map(str, numbers)), numbers.index(right))


def _of_labels(stop: int, text: str, right: str, others: Sequence[str]) -> QuizQuestion:
    """A question whose choices are tokens, in alphabetical order."""
    labels = sorted({right, *[label for label in dict.fromkeys(others) if label != right][: len(LETTERS) - 1]})
    return QuizQuestion(stop, text, tuple(labels), labels.index(right))


def _tokens(stop: int, report: explain.TourReport) -> QuizQuestion:
    count = len(report.tokens.tokens)
    special = sum(token.special for token in report.tokens.tokens)
    added = f", with {counted(special, 'special token')} that the tokenizer adds" if special else ""
    text = f"The text “{one_line(report.text)}” is cut into tokens. How many are there{added}?"
    return _of_numbers(stop, text, count, [len(report.text.split()), len(report.text), 2 * count, count + 1])


def _vectors(stop: int, report: explain.TourReport) -> QuizQuestion:
    word = report.vectors.terms[0].piece
    right = token_label(report.vectors.neighbours[0].piece)
    inside = [token_label(token) for token in report.tokens.tokens if token.id != word.id and not token.special]
    others = [label for label in reversed(inside) if label not in (right, token_label(word))]
    text = f"""Every token is a vector, and tokens that are used alike have similar vectors. Which token is closest to
    {token_label(word)}?"""
    return _of_labels(stop, text, right, others)


def _position(stop: int, report: explain.TourReport) -> QuizQuestion:
    forwards, backwards = report.position.in_order, report.position.reversed
    text = f"""After “{ending_of(report.begun)}” the most probable next token is {token_label(forwards.piece)}. Is it
    the same one after the same tokens in reverse order?"""
    return QuizQuestion(stop, text, ("yes", "no"), int(forwards.piece.id != backwards.piece.id))


def _attention(stop: int, report: explain.TourReport) -> QuizQuestion:
    head, keys = report.head_at, report.head_at.keys
    most = max(keys, key=lambda key: key.weight)
    names = {key.position: f"{token_label(key.piece)} (position {key.position})" for key in keys}
    near = [keys[-1], keys[0], *keys[-2:0:-1]]  # itself, the first one, then backwards
    others = [names[key.position] for key in near if key.weight < most.weight]
    text = f"""At the token {token_label(head.at)} (position {head.position}), head {head.head} of layer {head.layer}
    looks at the tokens so far. Which gets the most attention?"""
    return _of_labels(stop, text, names[most.position], others)


def _layers(stop: int, report: explain.TourReport) -> QuizQuestion:
    target, last = token_label(report.lens.target), report.lens.rows[-1]
    if report.forms and report.first_from is not None:
        text = f"""The model's answer after “{ending_of(report.begun)}” is {target}. From which of its {report.layers}
        layers on, counted from 0, is that the most probable token?"""
        return _of_numbers(stop, text, report.first_from, [0, report.layers - 1, report.layers // 2, 1])
    text = f"After all layers, how probable is {target}, the model's answer after “{ending_of(report.begun)}”?"
    return _of_probabilities(stop, text, last.p, [last.p / 3, 1 - last.p, (1 + last.p) / 2])


def _probabilities(stop: int, report: explain.TourReport) -> QuizQuestion:
    first, second, *rows = report.step.candidates[:ROWS]
    others = [token_label(row) for row in rows if row.p < second.p]
    text = f"""The model gives each of {report.step.vocabulary} tokens a probability. {token_label(first)} has the
    highest after “{ending_of(report.begun)}”. Which token has the second highest?"""
    return _of_labels(stop, text, token_label(second), others)


def _temperature(stop: int, report: explain.TourReport) -> QuizQuestion:
    top = report.step.candidates[0]
    cold, plain = (
        next(column.alone[top.id] for column in report.step.columns if column.temperature == temperature)
        for temperature in (0.5, 1.0)
    )
    text = f"At temperature 1, p of {token_label(top)} is {fixed(plain, 2)}. What is it at temperature 0.5?"
    return _of_probabilities(stop, text, cold, [plain, plain / 2, (plain + cold) / 2])


def _of_probabilities(stop: int, text: str, right: float, others: Sequence[float]) -> QuizQuestion:
    """A question whose choices are probabilities with two decimals, in ascending order."""
    labels = sorted({fixed(right, 2), *(fixed(other, 2) for other in others if 0 < other < 1)})
    return QuizQuestion(stop, text, tuple(labels), labels.index(fixed(right, 2)))


def _loop(stop: int, report: explain.TourReport) -> QuizQuestion:
    shown = report.loop[:ROWS]
    right = sum(token.rank == 0 for token in shown)
    text = f"""The model continues “{ending_of(report.begun)}”, one drawn token after another. Of the next
    {counted(len(shown), "token")}, how many are the most probable one at their place, with rank 0?"""
    return _of_numbers(stop, text, right, [n for n in (len(shown), 0, right + 1, right - 1) if n <= len(shown)])


def _why(stop: int, report: explain.TourReport) -> QuizQuestion:
    token, other = (token_label(piece) for piece in (report.why.token, report.why.other))
    name = f"L{report.head_at.layer}.H{report.head_at.head}"
    (part,) = [part for part in report.why.parts if part.name == name]
    text = f"""The most probable token after “{ending_of(report.begun)}” is {token}; the next is {other}. Which of
    the two does the head of stop 4, {name}, favor?"""
    return QuizQuestion(stop, text, (token, other), int(part.difference < 0))


_QUESTIONS: tuple[Callable[[int, explain.TourReport], QuizQuestion], ...] = (
    _tokens,
    _vectors,
    _position,
    _attention,
    _layers,
    _probabilities,
    _temperature,
    _loop,
    _why,
)
