"""Several texts that continue one prompt, each with its own seed, in order, and the best of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmcli.generation.batch import BatchStep, Request, generate_batch
from llmcli.generation.in_order import InOrder
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.sampling import Sampler

BATCH_SIZE = 32  # texts generated in parallel


@dataclass(frozen=True)
class Sample:
    """One of the texts. ``mean_logprob`` is per token, in nats; None without tokens.

    ``best`` marks the text with the highest mean log probability, among the valid ones if there are any. ``valid`` is
    whether the text fits the grammar, or None without one.
    """

    sample: int
    seed: int
    tokens: int
    mean_logprob: float | None
    finish: str
    text: str
    best: bool
    valid: bool | None


class Samples:
    """The steps of ``count`` texts, iterable once, in order: all steps of text 0, then those of text 1, and so on.

    The texts are generated in parallel, with the seeds that follow that of ``sampler``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        count: int,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        rolls: bool = False,
    ) -> None:
        self.loaded = loaded
        self.requests = [
            Request(
                n, prompt_ids, sampler.copy(sampler.seed + n, len(prompt_ids)), max_new_tokens, stop=stop, rolls=rolls
            )
            for n in range(count)
        ]
        self._order = InOrder[BatchStep]()
        self._ready = deque[BatchStep]()  # steps whose turn has come
        self._last: dict[int, BatchStep] = {}  # the latest step of each text that was started

    def __iter__(self) -> Iterator[BatchStep]:
        for step in generate_batch(self.loaded, self.requests, BATCH_SIZE):
            self._last[step.request.key] = step
            self._ready.extend(self._order.put(step.request.key, step, done=step.done))
            while self._ready:
                yield self._ready.popleft()

    def interrupt(self) -> Iterator[BatchStep]:
        """End all texts early. Yields the steps that are not yielded yet, and the text that was held back."""
        yield from self._ready
        for key, last in sorted(self._last.items()):
            if not last.done:
                rest = BatchStep(last.request, last.text, None, last.text.interrupt(), last.logprob, True)
                yield from self._order.put(key, rest, done=True)

    def results(self) -> list[Sample]:
        """The texts so far, without those that were not started."""
        best = max(
            self._last,
            key=lambda key: (self._last[key].text.valid is not False, self._last[key].mean_logprob or 0.0),
            default=None,
        )
        return [self.result(key, best=key == best) for key in sorted(self._last)]

    def result(self, key: int, *, best: bool = False) -> Sample:
        """One of the texts."""
        last = self._last[key]
        return Sample(
            sample=key,
            seed=last.request.sampler.seed,
            tokens=last.text.tokens,
            mean_logprob=last.mean_logprob,
            finish=last.text.finish,
            text=last.text.text,
            best=best,
            valid=last.text.valid,
        )
