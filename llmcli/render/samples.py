"""Several samples of one prompt: each text under its own label, and a table of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from llmcli import explain, generation
from llmcli.render.generation import ENDINGS, TextWriter, print_probabilities
from llmcli.render.table import Cell, Column, number_cell, print_table
from llmcli.render.terminal import note
from llmcli.render.text import counted, rate


@dataclass(frozen=True)
class SampleToken:
    """A token of one sample: the text it completes, its probability, and its report if probabilities are shown."""

    sample: int
    text: str
    prob: float
    report: explain.GeneratedToken | None
    done: bool  # whether it is the sample's last


class SamplesWriter:
    """Writes samples one after another, each after ``echoed``, and with ``labels`` after its number and seed.

    Tables of probabilities go to ``notes``.
    """

    def __init__(
        self,
        stream: TextIO,
        notes: TextIO,
        seeds: Sequence[int],
        *,
        echoed: str,
        by_probability: bool,
        labels: bool,
    ) -> None:
        self.stream, self.notes, self.seeds = stream, notes, seeds
        self.echoed, self.labels = echoed, labels
        self._by_probability = by_probability
        self._current = -1
        self._writer = TextWriter(stream, by_probability=by_probability)
        self._reports: list[explain.GeneratedToken] = []

    def write(self, event: SampleToken) -> None:
        """Write a sample's next token: the first follows its label, the last is followed by the probabilities."""
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
        """End a sample's last line, and print its probabilities if they are shown."""
        self._writer.end_line()
        self._writer = TextWriter(self.stream, by_probability=self._by_probability)
        if self._reports:
            print_probabilities(self._reports, self.notes)
        self._reports = []


def print_samples(
    rows: Sequence[generation.Sample], seconds: float, prompt_tokens: int, stream: TextIO, *, best: bool
) -> None:
    """Print a row for each sample, marking the best one if ``best``, and their speed in total."""
    columns = [
        Column("", plain="best"),
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
    speed = f", {rate(tokens / seconds)} tokens/s" if tokens and seconds > 0 else ""
    total, prompt = counted(tokens, "token"), counted(prompt_tokens, "token")
    note(f"{len(rows)} samples, {total}{speed} in total | prompt {prompt}, read once", stream)
