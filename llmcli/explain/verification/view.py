"""The view of proofs: is this model run right, on this machine and in this dtype?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from llmcli.explain.report import Report
from llmcli.explain.verification import consistency, devices, reference
from llmcli.explain.verification.proof import Finding, Plan, Proof, Skipped
from llmcli.explain.verification.subject import Reopen, Subject, dtype_name, fitting
from llmcli.generation.loaded import LoadedModel
from llmcli.storage.quantize import quantization_of

# What is read where no text is given; written for this.
TEXT = (
    "Early in the morning the baker opens her shop on the corner. She lights the oven, weighs the flour, and writes "
    "the price of each loaf on a small board: two coins for the rye, three for the wheat. Her first guest is always "
    'the old postman, who asks what day it is, laughs, and pays with a story. "Tell me," she says, "did the letter '
    'reach the island?" It did; but nobody there could read it, so they folded it into a boat and sent it back.'
)


@dataclass(frozen=True)
class Verdicts:
    """How many proofs hold, failed, and could not be made; ``ok`` if none failed."""

    ok: bool
    held: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class VerifyReport(Report):
    """A row a proof. ``quantized`` says how the weights are rounded; ``layers`` are those compared with transformers'.

    Of the text's ``text_tokens`` the first ``tokens`` were read.
    """

    model: str
    device: str
    dtype: str
    quantized: str | None
    text_tokens: int
    tokens: int
    proofs: tuple[Proof, ...]
    layers: tuple[reference.Layer, ...]
    check: Verdicts


def verify_report(
    loaded: LoadedModel,
    text: str,
    ids: Sequence[int],
    reopen: Reopen,
    *,
    adapted: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> VerifyReport:
    """Make every proof over ``ids``, those of ``text``. ``progress`` is told the name of each before it begins.

    Errors: fewer than two ids.
    """
    subject = Subject(loaded, text, fitting(loaded, ids), reopen, adapted)
    layers: list[reference.Layer] = []
    made = []
    for plan in [*own(subject), *devices.devices(subject), *devices.dtypes(subject), *transformers(subject, layers)]:
        progress(plan.name)
        made.append(plan.prove())
    held, failed, skipped = (sum(proof.verdict == verdict for proof in made) for verdict in ("ok", "failed", "skipped"))
    return VerifyReport(
        model=loaded.name,
        device=loaded.model.device.type,
        dtype=dtype_name(loaded.model),
        quantized=quantization_of(loaded.model),
        text_tokens=len(ids),
        tokens=len(subject.ids),
        proofs=tuple(made),
        layers=tuple(layers),
        check=Verdicts(failed == 0, held, failed, skipped),
    )


def own(subject: Subject) -> list[Plan]:
    """The proofs that need nothing beside the model itself."""
    watched = cache(lambda: consistency.watch(subject))
    allowed, repeated = subject.allowed, consistency.continued(subject)

    def observed(what: str, limit: float) -> Callable[[], Finding]:
        return lambda: Finding(getattr(watched(), what), limit)

    def of(find: Callable[[Subject], Finding]) -> Callable[[], Finding]:
        return lambda: find(subject)

    return [
        Plan("cached = uncached", "one token at a time gives the logits of all at once", of(consistency.cached)),
        Plan("chunked = whole", "a text read in pieces gives the logits of all at once", of(consistency.chunked)),
        Plan("gone back = fresh", "tokens read and taken back leave no trace", of(consistency.taken_back)),
        Plan("batched = alone", "two texts side by side do not touch each other", of(consistency.batched)),
        Plan("past is settled", "no token changes what comes before it", of(consistency.causal)),
        Plan("observed = unobserved", "watching the model changes no bit of its logits", observed("logits", 0.0)),
        Plan("attention sums to 1", "each head shares out its whole attention", observed("sums", consistency.SUMS)),
        Plan("attention looks back", "no head looks at a later token", observed("ahead", 0.0)),
        Plan("attention is used", "what attention adds is its weights times the values", of(consistency.weighed)),
        Plan("residual adds up", "each layer's output is its input plus what it added", observed("parts", allowed)),
        Plan("decoded = text", "the tokens of a text give the text back", of(consistency.decoded)),
        Plan("streamed = decoded", "text shown token by token is the text of all tokens", of(consistency.streamed)),
        Plan("drawn = drawn again", f"one seed writes the same {repeated} tokens twice", of(consistency.drawn_again)),
    ]


def transformers(subject: Subject, layers: list[reference.Layer]) -> list[Plan]:
    """The plans for both rows, made of one comparison, whose layers are put into ``layers``."""

    @cache
    def compared() -> reference.Compared | Skipped:
        try:
            found = reference.compare(subject)
        except Skipped as reason:
            return reason
        layers.extend(found.layers)
        return found

    def found() -> reference.Compared:
        result = compared()
        if isinstance(result, Skipped):
            raise result
        return result

    return [
        Plan(
            "layers = transformers",
            "each layer's output in float32 is the same there",
            lambda: Finding(found().worst.error, reference.LIMIT),
        ),
        Plan(
            "logits = transformers",
            "the logits in float32 are the same there",
            lambda: found().logits,
        ),
    ]
