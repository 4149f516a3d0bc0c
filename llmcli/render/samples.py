"""Several texts that continue one prompt: each under its own label, and a table of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from llmcli.render.generation import ENDINGS, TextWriter, print_probabilities
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import note
from llmcli.render.text import counted

if TYPE_CHECKING:  # types alone: torch must not come with them
    from llmcli.explain.report import GeneratedToken


@dataclass(frozen=True)
class SampleToken:
    """A token of one of the texts: what it completes, how probable it was and, where it was asked for, all about it."""

    sample: int
    text: str
    prob: float
    report: GeneratedToken | None
    done: bool


@dataclass(frozen=True)
class SampleRow:
    """How a text went; ``mean_logprob`` in nats a token, None where there are none."""

    sample: int
    seed: int
    tokens: int
    mean_logprob: float | None
    finish: str
    text: str
    best: bool
    valid: bool | None  # whether it is what a grammar asks for, where there is one


class SamplesWriter:
    """Writes texts one after the other, each behind ``echoed`` and, if ``labels`` are wanted, its number and seed."""

    def __init__(
        self,
        stream: TextIO,
        beside: TextIO,
        seeds: Sequence[int],
        *,
        echoed: str,
        by_probability: bool,
        labels: bool,
    ) -> None:
        self.stream, self.beside, self.seeds = stream, beside, seeds
        self.echoed, self.labels = echoed, labels
        self._by_probability = by_probability
        self._current = -1
        self._writer = TextWriter(stream, by_probability=by_probability)
        self._reports: list[GeneratedToken] = []

    def write(self, event: SampleToken) -> None:
        """A text's next token; with the first comes its label, with the last, if asked for, its probabilities."""
        if event.sample != self._current:
            self.end()
            if self.labels:
                between = "\n" if self._current >= 0 else ""
                self.stream.write(f"{between}--- sample {event.sample}, seed {self.seeds[event.sample]} ---\n")
            self._current = event.sample
            self._writer = TextWriter(self.stream, by_probability=self._by_probability)
            self._writer.write(self.echoed)
        self._writer.write(event.text, event.prob)
        if event.report is not None:
            self._reports.append(event.report)
        if event.done:
            self.end()

    def end(self) -> None:
        """Finish the last line of a text, and tell its probabilities."""
        self._writer.end_line()
        self._writer = TextWriter(self.stream, by_probability=self._by_probability)
        if self._reports:
            print_probabilities(self._reports, self.beside)
        self._reports = []


def print_samples(rows: Sequence[SampleRow], seconds: float, prompt_tokens: int, stream: TextIO, *, best: bool) -> None:
    """How all went, which was the ``best`` if that was asked for, and how fast they were together."""
    columns = [
        Column(""),
        Column("sample"),
        Column("seed", optional=2),
        Column("tokens", optional=-1),
        Column("mean logprob, nats"),
        Column("stopped", right=False, optional=1),
    ]
    cells = [
        [
            Cell("→" if best and row.best else ""),
            Cell(str(row.sample)),
            Cell(str(row.seed)),
            Cell(str(row.tokens)),
            number_cell(row.mean_logprob, 3),
            Cell(ENDINGS[row.finish]),
        ]
        for row in rows
    ]
    print_table(columns, cells, stream)
    tokens = sum(row.tokens for row in rows)
    rate = f", {tokens / seconds:.0f} tokens/s" if tokens and seconds > 0 else ""
    all, prompt = counted(tokens, "token"), counted(prompt_tokens, "token")
    note(f"{len(rows)} samples, {all}{rate} together | prompt {prompt}, read once", stream)
