"""``generate --num-samples`` and ``--best-of``: several texts that continue one prompt, written side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from llmcli.commands.options.common import bundle
from llmcli.commands.shell.interrupt import Interrupt
from llmcli.errors import usage_error

if TYPE_CHECKING:
    from llmcli.generation.batch import Written
    from llmcli.generation.loaded import LoadedModel
    from llmcli.generation.sampling import Sampler
    from llmcli.render.samples import SampleRow, SampleToken

SIDE_BY_SIDE = 32  # texts in one batch


@dataclass(frozen=True)
class Several:
    """How many texts to write, and whether only the best of them is shown."""

    count: int
    best: bool


def asked(num_samples: int, best_of: int | None) -> Several:
    """The options, checked."""
    if num_samples > 1 and best_of is not None:
        raise usage_error("--num-samples and --best-of exclude each other", "give one of them")
    return Several(best_of or num_samples, best_of is not None)


class Samples:
    """``count`` texts as they are written, with the seeds from the sampler's on; ``options`` are those of a ``Task``.

    ``interrupted`` tells whether Ctrl-C came before they were done.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        ids: Sequence[int],
        sampler: Sampler,
        count: int,
        options: Mapping[str, Any],
        *,
        rivals: int | None,
    ) -> None:
        from llmcli.generation.batch import Task

        self.loaded, self.rivals = loaded, rivals
        self.tasks = [Task(n, ids, sampler.copy(sampler.seed + n, len(ids)), **options) for n in range(count)]
        self.interrupted = False
        self.seconds = 0.0
        self._last: dict[int, Written] = {}

    def __iter__(self) -> Iterator[SampleToken]:
        """Every token, of text 0 first, then of text 1; after Ctrl-C those that were written by then."""
        from llmcli.generation.batch import InOrder, write_many
        from llmcli.render.samples import SampleToken

        order: InOrder[SampleToken] = InOrder()
        began = time.perf_counter()
        with Interrupt() as interrupt:
            try:
                for written in write_many(self.loaded, self.tasks, SIDE_BY_SIDE):
                    self._last[written.task.key] = written
                    yield from order.put(written.task.key, self._event(written), done=written.done)
                    self.seconds = time.perf_counter() - began
                    interrupt.point()
            except KeyboardInterrupt:
                self.interrupted = True
        for key, last in sorted(self._last.items()):
            if not last.done:
                held_back = SampleToken(key, last.writing.interrupt(), 1.0, None, True)
                yield from order.put(key, held_back, done=True)

    def rows(self) -> list[SampleRow]:
        """How each went, the best of them marked: that of the highest mean log probability, of the valid if any are."""
        best = max(
            self._last,
            key=lambda key: (self._last[key].writing.valid is not False, self._last[key].mean_logprob or 0.0),
            default=None,
        )
        return [self.row(key, best=key == best) for key in sorted(self._last)]

    def row(self, key: int, *, best: bool = False) -> SampleRow:
        """How one went."""
        from llmcli.render.samples import SampleRow

        last = self._last[key]
        return SampleRow(
            sample=key,
            seed=self.tasks[key].sampler.seed,
            tokens=last.writing.tokens,
            mean_logprob=last.mean_logprob,
            finish=last.writing.finish,
            text=last.writing.text,
            best=best,
            valid=last.writing.valid,
        )

    def _event(self, written: Written) -> SampleToken:
        from llmcli.explain.sampling_step import generated_token_of
        from llmcli.render.samples import SampleToken

        if written.step is None:
            return SampleToken(written.task.key, written.text, 1.0, None, written.done)
        report = None if self.rivals is None else generated_token_of(written.step, self.loaded.tokenizer, self.rivals)
        return SampleToken(written.task.key, written.text, written.step.choice.prob, report, written.done)


def write_samples(samples: Samples, *, best: bool, echoed: str) -> None:
    """The texts on stdout, in order, as they come; or once all are written, the best of them alone."""
    from llmcli.render.samples import SamplesWriter, print_samples

    seeds = [task.sampler.seed for task in samples.tasks]
    writer = SamplesWriter(
        sys.stdout, sys.stderr, seeds, echoed=echoed, by_probability=samples.rivals is not None, labels=not best
    )
    for event in chosen(samples) if best else samples:
        writer.write(event)
    writer.end()
    print_samples(samples.rows(), samples.seconds, len(samples.tasks[0].prompt_ids), sys.stderr, best=best)


def write_samples_json(samples: Samples, *, best: bool) -> None:
    """Likewise as NDJSON: for each text its start, a line a token, and an end."""
    from llmcli.files.ndjson import write_line
    from llmcli.render import json_forms

    current = None
    for event in chosen(samples) if best else samples:
        if event.sample != current:
            current = event.sample
            task = samples.tasks[current]
            filters = [(filter.name, filter.value) for filter in task.sampler.filters]
            start = json_forms.generation_start(samples.loaded.name, task.prompt_ids, task.sampler.seed, filters)
            write_line(json_forms.of_sample(current, start), sys.stdout)
        if event.report is not None:
            write_line(json_forms.of_sample(current, json_forms.generated_token(event.report)), sys.stdout)
        if event.done:
            write_line(json_forms.of_sample(current, json_forms.sample_end(samples.row(current))), sys.stdout)


def chosen(samples: Samples) -> list[SampleToken]:
    """The tokens of the best text, once all are written."""
    events = list(samples)
    return [event for row in samples.rows() if row.best for event in events if event.sample == row.sample]


several_options = bundle(
    "several",
    asked,
    click.option(
        "--num-samples", type=click.IntRange(min=1), default=1, show_default=True, help="Write so many texts."
    ),
    click.option(
        "--best-of", type=click.IntRange(min=1), help="Write so many texts; show the one the model finds most probable."
    ),
    title="Output",
)
