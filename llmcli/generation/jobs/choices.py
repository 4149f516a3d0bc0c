"""A batch of questions with choices: each choice is scored, and the right answers are counted."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcli.errors import LlmcliError
from llmcli.generation.choices import Question, Scored, score_choices, shares_of
from llmcli.generation.jobs.prompts import InvalidLine, Job, QuestionJob
from llmcli.generation.jobs.results import digest
from llmcli.generation.jobs.run import JobUpdate
from llmcli.generation.loaded import LoadedModel

NORMAL = 1.959964  # standard errors on each side of a 95% interval


class ChoiceWriter:
    """Scores the choices of jobs with a loaded model.

    ``ask`` returns the tokens of a job's prompt and choices and may raise LlmcliError, which fails that job alone. With
    ``end``, a choice counts only if the text ends after it. ``settings`` are further settings that scores depend on.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ask: Callable[[QuestionJob, int], Question],
        *,
        end: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self.loaded, self.ask, self.end, self.settings = loaded, ask, end, settings

    def mark(self, job: Job) -> str:
        """The digest of everything that the job's scores depend on."""
        assert isinstance(job, QuestionJob)
        asked = [job.prompt, job.choices, job.answer]
        return digest(asked, self.loaded.name, str(self.loaded.model.dtype), self.end, dict(self.settings))

    def write(self, jobs: Iterable[Job], size: int) -> Iterator[JobUpdate]:
        """Score the choices of each job, ``size`` of them at a time; an update for each job."""
        running: dict[int, QuestionJob] = {}
        failed: deque[JobUpdate] = deque()

        def questions() -> Iterator[Question]:
            for key, job in enumerate(jobs):
                assert isinstance(job, QuestionJob)
                try:
                    question = self.ask(job, key)
                except LlmcliError as error:
                    failed.append(JobUpdate(job, 0, error=error))
                    continue
                running[key] = job
                yield question

        for scored in score_choices(self.loaded, questions(), size, end=self.end):
            while failed:
                yield failed.popleft()
            job = running.pop(scored.question.key)
            yield JobUpdate(job, sum(map(len, scored.logprobs)), self._result(job, scored))
        yield from failed

    def _result(self, job: QuestionJob, scored: Scored) -> dict[str, Any]:
        choice, per_token = (max(range(len(each)), key=each.__getitem__) for each in (scored.totals, scored.means))
        question = scored.question
        return {
            "id": job.id,
            "text": job.choices[choice],
            "finish": "choice",
            "choice": choice,
            "choice_per_token": per_token,
            "answer": job.answer,
            "correct": None if job.answer is None else choice == job.answer,
            "correct_per_token": None if job.answer is None else per_token == job.answer,
            "logprobs": scored.totals,
            "tokens": [len(each) for each in scored.logprobs],
            "shares": shares_of(scored.totals),
            "outside": scored.outside,
            "prompt_tokens": len(question.context) + len(question.moved),
            "mark": self.mark(job),
        }


def questions_only(lines: Sequence[Job | InvalidLine]) -> list[Job | InvalidLine]:
    """Return ``lines`` with those that have no choices as invalid lines, if others have some."""
    if not any(isinstance(line, QuestionJob) for line in lines):
        return list(lines)
    return [
        line
        if isinstance(line, QuestionJob | InvalidLine)
        else InvalidLine(line.number, "choices is missing: other lines have choices")
        for line in lines
    ]


@dataclass(frozen=True)
class Accuracy:
    """How many of ``questions`` were answered right: ``correct``. ``chance`` is the share that guessing gets right."""

    questions: int
    correct: int
    chance: float

    @property
    def share(self) -> float:
        return self.correct / self.questions

    @property
    def standard_error(self) -> float:
        """Of the share: the square root of p (1 - p) / n."""
        return math.sqrt(self.share * (1 - self.share) / self.questions)

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson score interval of 95% (Wilson 1927), which also holds for few questions and shares near 0 or 1."""
        n, z2 = self.questions, NORMAL**2
        center = (self.correct + z2 / 2) / (n + z2)
        half = NORMAL / (n + z2) * math.sqrt(self.correct * (n - self.correct) / n + z2 / 4)
        return max(center - half, 0.0), min(center + half, 1.0)


def accuracies(path: Path) -> tuple[Accuracy, Accuracy] | None:
    """Return the accuracy of the results in a file: by log probability, and by log probability per token.

    None if no result has the right answer.
    """
    counts, chance = [0, 0], 0.0
    questions = 0
    with path.open("rb") as lines:
        for line in lines:
            record = json.loads(line)
            if record["correct"] is not None:
                questions += 1
                chance += 1 / len(record["logprobs"])
                counts[0] += record["correct"]
                counts[1] += record["correct_per_token"]
    if not questions:
        return None
    by_total, per_token = (Accuracy(questions, count, chance / questions) for count in counts)
    return by_total, per_token
