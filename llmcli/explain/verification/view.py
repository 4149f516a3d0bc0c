"""The view of all proofs: is this model run correctly, on this machine and in this dtype?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llmcli.explain.report import Report
from llmcli.explain.selection import Text, token_ids
from llmcli.explain.verification import consistency, reference
from llmcli.explain.verification.compiled import compiled_plans
from llmcli.explain.verification.devices import device_plans, dtype_plans
from llmcli.explain.verification.faithful import faithful_plans
from llmcli.explain.verification.proof import Finding, Plan, Proof, Skipped
from llmcli.explain.verification.subject import Reopen, Subject, fitting
from llmcli.generation.loaded import LoadedModel, load
from llmcli.storage.quantize import quantization_of

# Read if no text is given; written for this purpose.
TEXT = (
    "Early in the morning the baker opens her shop on the corner. She lights the oven, weighs the flour, and writes "
    "the price of each loaf on a small board: two coins for the rye, three for the wheat. Her first guest is always "
    'the old postman, who asks what day it is, laughs, and pays with a story. "Tell me," she says, "did the letter '
    'reach the island?" It did; but nobody there could read it, so they folded it into a boat and sent it back.'
)


@dataclass(frozen=True)
class Verdicts:
    """How many proofs hold, failed and were skipped; ``ok`` if none failed."""

    ok: bool
    held: int
    failed: int
    skipped: int


@dataclass(frozen=True)
class VerifyReport(Report):
    """One row per proof. ``quantized`` is the format of quantized weights; ``layers`` are the errors of each layer
    compared with transformers.

    The model read the first ``tokens`` of the text's ``text_tokens``.
    """

    model: str
    device: str
    dtype: str
    quantized: str | None
    text_tokens: int
    tokens: int
    proofs: tuple[Proof, ...]
    layers: tuple[reference.LayerError, ...]
    check: Verdicts


def verify(
    loaded: LoadedModel,
    text: Text | None = None,
    *,
    reopen: Reopen | None = None,
    adapted: bool = False,
    original: LoadedModel | None = None,
    progress: Callable[[str], None] = lambda name: None,
    parse_special: bool = False,
) -> VerifyReport:
    """Run every proof over ``text``, or over a text of llmcli's own.

    ``reopen(device, dtype)`` opens the same model again; None opens its folder. ``adapted`` says that a LoRA adapter is
    merged into the weights, which ``reopen`` must then merge too. ``original``, in float32 on the CPU, is the model
    that the files were converted from; they are then compared with it. ``progress`` is called with the name of each
    proof before it runs.
    Raises LlmcliError if the text has fewer than two tokens.
    """
    text = TEXT if text is None else text
    ids = token_ids(loaded, text, parse_special=parse_special)
    text = text if isinstance(text, str) else loaded.tokenizer.decode(ids)
    subject = Subject(loaded, text, fitting(loaded, ids), reopen or _opener(loaded), adapted)
    layers: list[reference.LayerError] = []
    plans = [
        *([] if original is None else faithful_plans(subject, original)),
        *consistency_plans(subject),
        *compiled_plans(subject),
        *device_plans(subject),
        *dtype_plans(subject),
        *reference_plans(subject, layers),
    ]
    proofs = []
    for plan in plans:
        progress(plan.name)
        proofs.append(plan.run())
    held, failed, skipped = (
        sum(proof.verdict == verdict for proof in proofs) for verdict in ("ok", "failed", "skipped")
    )
    return VerifyReport(
        model=loaded.name,
        device=loaded.model.device.type,
        dtype=loaded.model.dtype_name,
        quantized=quantization_of(loaded.model),
        text_tokens=len(ids),
        tokens=len(subject.ids),
        proofs=tuple(proofs),
        layers=tuple(layers),
        check=Verdicts(failed == 0, held, failed, skipped),
    )


def _opener(loaded: LoadedModel) -> Reopen:
    """A function that opens the folder of ``loaded`` again, quantized in the same way."""

    def reopen(device: str, dtype: str) -> LoadedModel:
        return load(loaded.folder, name=loaded.name, device=device, dtype=dtype, quantization=loaded.quantization)

    return reopen


def consistency_plans(subject: Subject) -> list[Plan]:
    """Return the plans that need nothing but the model itself."""
    errors = cache(lambda: consistency.observed_errors(subject))
    count = consistency.continuation_length(subject)
    most = "at most " if subject.model.config.attention_sinks else ""  # the rest is the sink's

    def observed(name: str, limit: float) -> Callable[[], Finding]:
        return lambda: Finding(getattr(errors(), name), limit)

    def attended(name: str, limit: float) -> Callable[[], Finding]:
        def find() -> Finding:
            consistency.require_attention(subject)
            return observed(name, limit)()

        return find

    def of(find: Callable[[Subject], Finding]) -> Callable[[], Finding]:
        return lambda: find(subject)

    return [
        Plan("cached = uncached", "one token at a time gives the logits of all at once", of(consistency.cached)),
        Plan("chunked = whole", "a text read in chunks gives the logits of all at once", of(consistency.chunked)),
        Plan("truncated = fresh", "tokens removed from the cache leave no trace", of(consistency.truncated)),
        Plan("batched = alone", "two texts in one batch do not affect each other", of(consistency.batched)),
        Plan("past is fixed", "no token changes what comes before it", of(consistency.causal)),
        Plan("observed = unobserved", "observing the model changes no bit of its logits", observed("logits", 0.0)),
        Plan("attention sums to 1", f"each head's weights sum to {most}1", attended("sums", consistency.SUM_TOLERANCE)),
        Plan("attention is causal", "no head looks at a later token", attended("ahead", 0.0)),
        Plan(
            "attention adds up",
            "what attention adds is its weights times the values",
            of(consistency.attention_adds_up),
        ),
        Plan(
            "residual adds up",
            "each layer's output is its input plus what it added",
            observed("parts", subject.tolerance),
        ),
        Plan("decoded = text", "the tokens of a text decode to the same text", of(consistency.decoded)),
        Plan("streamed = decoded", "text printed token by token is the text of all tokens", of(consistency.streamed)),
        Plan("seed repeats", f"the same seed generates the same {count} tokens again", of(consistency.repeated)),
    ]


def reference_plans(subject: Subject, layers: list[reference.LayerError]) -> list[Plan]:
    """Return the plans for both rows of one comparison with transformers, which adds its errors to ``layers``."""

    @cache
    def result() -> reference.Comparison | Skipped:
        try:
            found = reference.compare_with_transformers(subject)
        except Skipped as reason:
            return reason
        layers.extend(found.layers)
        return found

    def comparison() -> reference.Comparison:
        found = result()
        if isinstance(found, Skipped):
            raise found
        return found

    return [
        Plan(
            "layers = transformers",
            "each layer's output in float32 is the same in transformers",
            lambda: Finding(comparison().worst.error, reference.LIMIT),
        ),
        Plan(
            "logits = transformers",
            "the logits in float32 are the same in transformers",
            lambda: comparison().logits,
        ),
    ]
