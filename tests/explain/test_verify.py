"""`verify`: proofs that hold for every kind of model, and mistakes that must fail their own proofs and no others."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmcli.engine.native import NativeStep, variant
from llmcli.engine.native import step as step_module
from llmcli.engine.native.library import Model, Row
from llmcli.engine.transformer import EngineTransformer
from llmcli.errors import LlmcliError
from llmcli.explain.verification import compiled
from llmcli.explain.verification import subject as subject_module
from llmcli.explain.verification.compiled import compiled_plans
from llmcli.explain.verification.proof import (
    Proof,
    difference,
    first_divergence,
    fraction_different,
    largest_difference,
)
from llmcli.explain.verification.subject import Subject, fitting, parameter_count
from llmcli.explain.verification.view import TEXT, VerifyReport, consistency_plans, verify
from llmcli.generation.loaded import LoadedModel
from llmcli.generation.reading import next_logits
from llmcli.generation.sampling import Sampler
from llmcli.model import attention
from llmcli.model.attention import Attention
from llmcli.model.cache import KVCache
from llmcli.model.device import Memory
from llmcli.model.trace import Trace
from llmcli.model.transformer import Transformer
from llmcli.storage.checkpoint import Checkpoint
from llmcli.storage.quantize import Quantization, quantization_of, quantize
from llmcli.text.stream import TextStream
from llmcli.text.tokenizer import Tokenizer
from llmcli.train.vocabulary import train_tokenizer
from tests.explain.reference import loaded, tokenizer
from tests.tiny import CONTEXT, CPU, KINDS, VOCAB, Tiny, TinyFactory, random_ids
from tests.wide import raw_config, wide_model

Mutation = Callable[[Transformer], None]
LENGTH = 100  # longer than any window
IDS = random_ids(LENGTH, seed=3)[0].tolist()
WORDS = "w5 w17"
FAMILIES = ["llama", "gpt2", "gemma2", "qwen3", "phi3-longrope", "mixtral"]  # compared with transformers
OWN = ["llama-dynamic", "gpt_neox", "gemma3_text", "mistral", "stablelm-parallel", "cohere", *FAMILIES]

CACHED = {"cached = uncached", "chunked = whole", "truncated = fresh", "batched = alone"}
NATIVE, STEPS = "native = torch", "steps of 16 = of 1"
LAYERS, LOGITS = "layers = transformers", "logits = transformers"
DTYPE, DEVICE = "bfloat16 ~ float32", "cpu = accelerator"


FORMATS = ["float32", "bfloat16", "int8", "int4"]
native_only = pytest.mark.skipif(variant() is None, reason="the native engine was not compiled")


def untouched(model: Transformer) -> None:
    """No mistake."""


def opener(case: Tiny, mutate: Mutation) -> Callable[[str, str], LoadedModel]:
    """Opens the model again with the same mistake, as a mistake in the code would affect both."""

    def reopen(device: str, dtype: str) -> LoadedModel:
        model = case.load()
        mutate(model)
        return loaded(case, model.to(getattr(torch, dtype)))

    return reopen


def report_of(case: Tiny, mutate: Mutation = untouched, **options: Any) -> VerifyReport:
    model = case.load()
    mutate(model)
    return verify(loaded(case, model), IDS, **({"reopen": opener(case, mutate)} | options))


def own_proofs(opened: LoadedModel, ids: Sequence[int] = IDS) -> list[Proof]:
    subject = Subject(opened, WORDS, fitting(opened, ids), lambda device, dtype: opened, False)
    return [plan.run() for plan in consistency_plans(subject)]


def having(verdict: str, proofs: Sequence[Proof]) -> dict[str, Proof]:
    return {proof.name: proof for proof in proofs if proof.verdict == verdict}


def failed(report: VerifyReport) -> set[str]:
    names = set(having("failed", report.proofs))
    assert report.check.ok == (not names)
    assert report.check.failed == len(names)
    return names


# Correct models.


@pytest.mark.parametrize("name", FAMILIES)
def test_a_correct_model_passes(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    report = report_of(case)
    assert failed(report) == set()
    # ``reference.tokenizer`` has no tokens for spaces and punctuation.
    assert set(having("skipped", report.proofs)) == {DEVICE, "decoded = text"}
    assert (report.model, report.device, report.dtype, report.quantized) == (name, "cpu", "float32", None)
    assert (report.text_tokens, report.tokens) == (LENGTH, LENGTH)
    assert (report.check.held, report.check.skipped) == (len(report.proofs) - 2, 2)
    assert [layer.layer for layer in report.layers] == list(range(case.load().config.num_hidden_layers))
    shown = {proof.name: proof for proof in report.proofs}
    assert shown[LAYERS].error == max(layer.error for layer in report.layers)
    assert 0 < (shown[LAYERS].error or 0) < 1e-5
    assert 0 < (shown[LOGITS].error or 0) < 1e-5
    assert len({proof.name for proof in report.proofs}) == len(report.proofs)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_passes(tiny: TinyFactory, name: str) -> None:
    proofs = own_proofs(loaded(tiny(name)))
    assert set(having("skipped", proofs)) == {"decoded = text"}
    assert not having("failed", proofs)
    assert all(proof.error is not None and proof.error < 1e-5 for proof in proofs if proof.verdict == "ok")


@pytest.mark.parametrize("name", OWN)
def test_bfloat16_passes(tiny: TinyFactory, name: str) -> None:
    case = tiny(name)
    assert not having("failed", own_proofs(loaded(case, case.load().to(torch.bfloat16))))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["llama-llama3", "gemma2", "mixtral"])
def test_quantized_weights_pass(tiny: TinyFactory, name: str, kind: Quantization) -> None:
    def opened(dtype: str) -> LoadedModel:
        model = tiny(name).load().to(getattr(torch, dtype))
        quantize(model, kind)
        return loaded(tiny(name), model)

    for dtype in ("float32", "bfloat16"):
        report = verify(opened(dtype), IDS, reopen=lambda device, dtype: opened(dtype))
        assert failed(report) == set()
        assert (report.quantized, report.dtype) == (kind, dtype)
        skipped = having("skipped", report.proofs)
        assert {LAYERS, LOGITS} < set(skipped)
        assert "quantized" in (skipped[LAYERS].reason or "")


@pytest.mark.parametrize("length", [2, 3, 5, CONTEXT])
@pytest.mark.parametrize("name", ["mistral", "gpt2", "llama-dynamic"])
def test_texts_of_any_length_pass(tiny: TinyFactory, name: str, length: int) -> None:
    ids = random_ids(length, seed=1)[0].tolist()
    assert not having("failed", own_proofs(loaded(tiny(name)), ids))


def test_a_checkpoint_in_bfloat16_is_compared_in_float32(tiny: TinyFactory) -> None:
    case = tiny("qwen3")
    opened_as: list[tuple[str, str]] = []

    def reopen(device: str, dtype: str) -> LoadedModel:
        opened_as.append((device, dtype))
        return opener(case, untouched)(device, dtype)

    report = verify(loaded(case, case.load().to(torch.bfloat16)), IDS, reopen=reopen)
    assert failed(report) == set()
    assert opened_as == [("cpu", "float32")] * 2  # for the dtype and for transformers; never in the dtype it has
    assert report.dtype == "bfloat16"


def test_the_default_text_is_ordinary() -> None:
    assert TEXT.isascii()
    assert 60 <= len(TEXT.split()) <= 120


# Mistakes in the code: each fails its own proofs only.


def test_keys_written_to_a_wrong_position(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch, which also decodes here."""
    monkeypatch.setattr(EngineTransformer, "native", None)
    monkeypatch.setattr(EngineTransformer, "products", None)
    right = KVCache.append

    def wrong(cache: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = right(cache, layer, k, v)
        if keys.shape[2] > k.shape[2]:
            keys[:, :, -k.shape[2] - 1] = k[:, :, 0]
        return keys, values

    monkeypatch.setattr(KVCache, "append", wrong)
    assert failed(report_of(tiny("llama"))) == CACHED


def test_a_cache_truncated_to_one_token_too_many(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVCache.truncate
    monkeypatch.setattr(KVCache, "truncate", lambda cache, length: right(cache, min(cache.length, length + 1)))
    assert failed(report_of(tiny("llama"))) == {"truncated = fresh"}


def test_texts_of_a_batch_that_affect_each_other(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Attention.forward

    def wrong(*args: Any) -> Tensor:
        out = right(*args)
        if out.dim() == 3 and len(out) > 1:
            out[0] += 0.1 * out[1]
        return out

    monkeypatch.setattr(Attention, "forward", wrong)
    assert failed(report_of(tiny("llama"))) == {"batched = alone"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("llama", set()),
        # Its windows need a mask in every pass.
        ("gemma2", {"cached = uncached", NATIVE, "past is fixed", LAYERS, LOGITS}),
    ],
)
def test_a_mask_that_shows_the_next_token(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, name: str, more: set[str]
) -> None:
    right = attention.causal_mask

    def wrong(past: int, count: int, *rest: Any) -> Tensor:
        return right(past, count, *rest).roll(1, -1) | right(past, count, *rest)

    for place in ("llmcli.model.attention.causal_mask", "llmcli.model.positions.causal_mask"):
        monkeypatch.setattr(place, wrong)
    chunks = CACHED - {"cached = uncached"}
    assert failed(report_of(tiny(name))) == {"attention is causal", *chunks, *more}


def test_an_observer_that_changes_what_it_sees(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Trace.keep

    def wrong(trace: Trace, into: list[Tensor], x: Tensor) -> None:
        right(trace, into, x)
        x.add_(1e-5)

    monkeypatch.setattr(Trace, "keep", wrong)
    assert failed(report_of(tiny("llama"))) == {"observed = unobserved"}


@pytest.mark.parametrize(
    ("wrong", "rows"),
    [
        (lambda weights: weights * 1.01, {"attention sums to 1", "attention adds up"}),
        (lambda weights: (weights * weights) / (weights * weights).sum(-1, keepdim=True), {"attention adds up"}),
    ],
    ids=["larger", "sharper"],
)
def test_other_weights_than_the_layer_used(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Tensor], Tensor], rows: set[str]
) -> None:
    right = attention.attention_weights
    monkeypatch.setattr(attention, "attention_weights", lambda *args, **options: wrong(right(*args, **options)))
    assert failed(report_of(tiny("llama"))) == rows


def test_an_output_that_is_not_part_of_the_residual(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Trace.keep

    def wrong(trace: Trace, into: list[Tensor], x: Tensor) -> None:
        right(trace, into, x * 1.01 if into is trace.mlp_out else x)

    monkeypatch.setattr(Trace, "keep", wrong)
    assert failed(report_of(tiny("llama"))) == {"residual adds up"}


def test_a_sampler_that_ignores_its_seed(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right, seeds = Sampler.__init__, iter(range(100))
    monkeypatch.setattr(Sampler, "__init__", lambda self, filters, seed: right(self, filters, next(seeds)))
    assert failed(report_of(tiny("llama"))) == {"seed repeats"}


# The compiled engine.


def compiled_proofs(opened: LoadedModel) -> dict[str, Proof]:
    subject = Subject(opened, WORDS, fitting(opened, IDS), lambda device, dtype: opened, False)
    return {plan.name: plan.run() for plan in compiled_plans(subject)}


def in_format(case: Tiny, name: str) -> LoadedModel:
    model = case.load()
    if name in ("int8", "int4"):
        quantize(model.to(torch.bfloat16), name)  # type: ignore[arg-type]
    else:
        model.to(getattr(torch, name))
    return loaded(case, model)


@native_only
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3-longrope", "mixtral", "cohere"])
def test_the_compiled_engine_is_compared_with_torch(tiny: TinyFactory, name: str, format: str) -> None:
    proofs = compiled_proofs(in_format(tiny(name), format))
    assert {name: proof.verdict for name, proof in proofs.items()} == {NATIVE: "ok", STEPS: "ok"}
    assert 0 < (proofs[NATIVE].error or 0) < (1e-5 if format == "float32" else 5e-3)
    assert (proofs[STEPS].error, proofs[STEPS].limit) == (0.0, 0.0)


def _another_position(step: NativeStep, row: Row, token: int, cache: KVCache, at: int) -> list[Tensor]:
    return DESCRIBE(step, row, token, cache, max(at - 1, 0))


DESCRIBE = NativeStep._describe


@native_only
@pytest.mark.parametrize("format", FORMATS)
def test_a_compiled_engine_that_reads_other_positions(
    tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(NativeStep, "_describe", _another_position)
    assert compiled_proofs(in_format(tiny("llama"), format))[NATIVE].verdict == "failed"


@native_only
@pytest.mark.parametrize("format", FORMATS)
def test_a_compiled_engine_with_other_numbers(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """Attention that is too sharp, and then a difference of one bit in steps of several tokens."""
    right = NativeStep.feed
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "Model", lambda **fields: Model(**fields | {"attention_scale": 0.3}))
        assert compiled_proofs(in_format(tiny("llama"), format))[NATIVE].verdict == "failed"

    def wrong(step: NativeStep, ids: Sequence[int], cache: KVCache, wanted: int) -> Tensor:
        logits = right(step, ids, cache, wanted)
        return logits if len(ids) == 1 else torch.nextafter(logits, torch.tensor(torch.inf))

    monkeypatch.setattr(NativeStep, "feed", wrong)
    proofs = compiled_proofs(in_format(tiny("llama"), format))
    assert {name: proof.verdict for name, proof in proofs.items()} == {NATIVE: "ok", STEPS: "failed"}


@native_only
def test_a_wrong_compiled_engine_fails_no_proof_of_torch(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeStep, "_describe", _another_position)
    opened = loaded(tiny("llama"))
    proofs = [*own_proofs(opened), *compiled_proofs(opened).values()]
    assert set(having("failed", proofs)) == {NATIVE, STEPS, "cached = uncached", "batched = alone"}


def test_why_the_compiled_engine_is_not_compared(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons(opened: LoadedModel) -> set[str]:
        proofs = compiled_proofs(opened).values()
        assert {proof.verdict for proof in proofs} == {"skipped"}
        return {proof.reason or "" for proof in proofs}

    case = tiny("llama")
    with monkeypatch.context() as patch:
        patch.setattr(Transformer, "device", torch.device("cuda"))
        assert reasons(loaded(case)) == {"the model runs on a GPU, but the compiled engine runs on the CPU only"}
    plain = Checkpoint.read(case.folder).load(device=CPU, dtype=torch.float32)
    monkeypatch.setattr(compiled, "variant", lambda: "avx2")
    assert reasons(loaded(case, plain)) == {"torch runs every step of this model"}
    monkeypatch.setattr(compiled, "variant", lambda: None)
    assert reasons(loaded(case)) == {"llmcli was installed without the compiled engine, so torch runs every step"}


# Mistakes in what a family needs: only a comparison with transformers catches them.


class Bare(nn.Module):
    """A norm that does nothing."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def without_norm(model: Transformer) -> None:
    model.norm = Bare(model.norm.weight)  # type: ignore[assignment]


def without_softcap(model: Transformer) -> None:
    model.config = dataclasses.replace(model.config, logit_softcap=None)


def other_theta(model: Transformer) -> None:
    assert model.config.rope is not None
    model.config = dataclasses.replace(model.config, rope=dataclasses.replace(model.config.rope, theta=777.0))


@pytest.mark.parametrize(
    ("name", "mutate", "rows"),
    [
        ("llama", without_norm, {LOGITS}),
        ("gpt2", without_norm, {LOGITS}),
        ("gemma2", without_softcap, {LOGITS}),
        ("llama", other_theta, {LAYERS, LOGITS}),
        ("qwen3", other_theta, {LAYERS, LOGITS}),
    ],
)
def test_a_model_built_incorrectly(tiny: TinyFactory, name: str, mutate: Mutation, rows: set[str]) -> None:
    assert failed(report_of(tiny(name), mutate)) == rows


def test_a_mistake_in_one_layer_shows_from_that_layer_on(tiny: TinyFactory) -> None:
    def mutate(model: Transformer) -> None:
        model.blocks[1].mlp.down.weight[0] += 0.05  # type: ignore[union-attr,index]

    report = report_of(tiny("llama"), mutate)
    assert failed(report) == {LAYERS, LOGITS}
    errors = [layer.error for layer in report.layers]
    assert errors[0] < 1e-5 < 1e-4 < errors[1]


def test_other_weights_than_the_folders(tiny: TinyFactory) -> None:
    case = tiny("llama")
    model = case.load()
    model.blocks[2].attn.out.weight.mul_(1.003)  # type: ignore[union-attr,operator]
    report = verify(loaded(case, model), IDS, reopen=opener(case, untouched))
    assert failed(report) == {LAYERS, LOGITS}


# Text.

SENTENCE = "The old fox met a hen by the river."


@pytest.fixture
def words(tiny: TinyFactory) -> LoadedModel:
    """A model with a byte-level tokenizer."""
    fast = train_tokenizer([SENTENCE], 258)
    model = wide_model(raw_config("llama") | {"vocab_size": 270})
    return dataclasses.replace(loaded(tiny("llama"), model), tokenizer=Tokenizer(fast, "bytes"))


def text_rows(words: LoadedModel, text: str = SENTENCE) -> dict[str, str]:
    subject = Subject(words, text, tuple(words.prompt_ids(text)), lambda device, dtype: words, False)
    return {plan.name: plan.run().verdict for plan in consistency_plans(subject) if "decoded" in plan.name}


def test_text_survives_encoding_and_decoding(words: LoadedModel) -> None:
    assert text_rows(words) == {"decoded = text": "ok", "streamed = decoded": "ok"}
    assert text_rows(words, " \n ") == {"decoded = text": "ok", "streamed = decoded": "ok"}


def test_a_decoder_that_changes_a_character(words: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, **more: right(self, ids, **more).replace("x", "y"))
    assert text_rows(words) == {"decoded = text": "failed", "streamed = decoded": "ok"}


def test_a_stream_that_decodes_single_tokens(words: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextStream, "feed", lambda self, id: self.tokenizer.decode([id]))
    assert text_rows(words) == {"decoded = text": "ok", "streamed = decoded": "failed"}


def test_a_tokenizer_that_normalizes_is_skipped(tiny: TinyFactory) -> None:
    proof = having("skipped", own_proofs(loaded(tiny("llama"))))["decoded = text"]
    assert "cannot restore" in (proof.reason or "")
    assert tokenizer().encode("w5 other") == [5, 0]


# Other devices and dtypes.


def test_another_device_is_compared(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    case = tiny("llama")

    def on_mps(mutate: Mutation) -> VerifyReport:
        reopen = {"mps": opener(case, mutate), "cpu": opener(case, untouched)}
        return report_of(case, reopen=lambda device, dtype: reopen[device](device, dtype))

    assert failed(on_mps(untouched)) == set()
    report = on_mps(other_theta)
    assert failed(report) == {"cpu = mps"}
    parted = having("failed", report.proofs)["cpu = mps"].parting
    assert parted is not None
    assert parted.margin > 0


def test_a_dtype_whose_error_is_larger_than_rounding(tiny: TinyFactory) -> None:
    case = tiny("llama")

    def in_bfloat16(mutate: Mutation) -> VerifyReport:
        reopen = {"bfloat16": opener(case, mutate), "float32": opener(case, untouched)}
        return report_of(case, reopen=lambda device, dtype: reopen[dtype](device, dtype))

    assert failed(in_bfloat16(untouched)) == set()
    assert failed(in_bfloat16(other_theta)) == {DTYPE}

    def overflow(model: Transformer) -> None:
        model.norm.weight.fill_(float("inf"))

    report = in_bfloat16(overflow)
    assert failed(report) == {DTYPE}
    assert "contain NaN or infinity" in (having("failed", report.proofs)[DTYPE].reason or "")


def test_the_divergence_of_two_dtypes_is_reported(tiny: TinyFactory) -> None:
    """Compared with greedy continuations computed here."""
    case = tiny("llama-yarn-mscale")
    (proof,) = [proof for proof in report_of(case).proofs if proof.name == DTYPE]
    models = [case.load(), case.load().to(torch.bfloat16)]
    caches = [model.new_cache() for model in models]
    unread = IDS[: CONTEXT - 32]
    parted = None
    for place in range(32):
        exact, rounded = (next_logits(model, unread, cache) for model, cache in zip(models, caches, strict=True))
        if exact.argmax() != rounded.argmax():
            parted = place
            break
        unread = [int(exact.argmax())]
    if parted is None:
        assert (proof.parting, proof.error) == (None, 0.0)
        return
    assert proof.parting is not None
    assert proof.parting.position == CONTEXT - 32 + parted - 1
    assert proof.parting.favourite.id == int(exact.argmax())
    assert proof.parting.other.id == int(rounded.argmax())
    assert proof.parting.margin == pytest.approx(float(exact.max() - exact[rounded.argmax()]), abs=1e-4)


def test_a_model_that_does_not_fit_into_memory_is_skipped(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("llama")
    need = 4 * sum(parameter.numel() for parameter in case.load().parameters())
    monkeypatch.setattr("llmcli.model.device.memory_of", lambda device: Memory(2 * need - 1, None))
    skipped = having("skipped", report_of(case).proofs)
    assert "memory" in (skipped[DTYPE].reason or "")
    assert LAYERS not in skipped  # it already runs in float32, so no second model is opened
    monkeypatch.setattr("llmcli.model.device.memory_of", lambda device: Memory(2 * need, None))
    assert DTYPE not in having("skipped", report_of(case).proofs)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_parameters_of_quantized_models_are_counted(kind: Quantization | None) -> None:
    model = wide_model(raw_config("llama"))
    count = sum(parameter.numel() for parameter in model.parameters())
    if kind is not None:
        quantize(model, kind)
    assert parameter_count(model) == count
    assert quantization_of(model) == kind


# transformers.


def test_without_transformers_its_proofs_are_skipped(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny("llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = report_of(case)
    assert report.check.ok
    assert report.layers == ()
    for name in (LAYERS, LOGITS):
        assert "pip install transformers" in (having("skipped", report.proofs)[name].reason or "")


def test_what_transformers_cannot_load_is_skipped_in_one_line(tiny: TinyFactory, tmp_path: Path) -> None:
    case = tiny("llama")
    shutil.copy(case.folder / "config.json", tmp_path)
    opened = dataclasses.replace(loaded(case), folder=tmp_path)
    report = verify(opened, IDS, reopen=opener(case, untouched))
    reason = having("skipped", report.proofs)[LAYERS].reason or ""
    assert reason.startswith("transformers cannot run it: ")
    assert "\n" not in reason


def test_a_merged_adapter_skips_the_comparison(tiny: TinyFactory) -> None:
    report = report_of(tiny("llama"), adapted=True)
    assert "adapter" in (having("skipped", report.proofs)[LOGITS].reason or "")


# The text, and the measures.


def test_a_long_text_is_cut_and_reported(tiny: TinyFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = loaded(tiny("llama"))
    assert len(fitting(opened, IDS * 5)) == CONTEXT
    monkeypatch.setattr(subject_module, "MAX_LOGITS", 50 * VOCAB)
    assert fitting(opened, IDS) == tuple(IDS[:50])
    report = report_of(tiny("llama"))
    assert (report.text_tokens, report.tokens) == (LENGTH, 50)


def test_a_text_of_one_token_is_an_error(tiny: TinyFactory) -> None:
    for ids in ([], [1]):
        with pytest.raises(LlmcliError, match="two tokens"):
            fitting(loaded(tiny("llama")), ids)


def test_each_proof_is_announced(tiny: TinyFactory) -> None:
    names: list[str] = []
    report = report_of(tiny("llama"), progress=names.append)
    assert names == [proof.name for proof in report.proofs]


def test_differences_are_relative() -> None:
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    ours = reference + torch.tensor([[0.0, 0.0], [0.3, -0.4]])
    assert difference(ours, reference) == pytest.approx(0.1)
    assert largest_difference(ours, reference) == pytest.approx(0.1)
    nan = ours.clone()
    nan[0, 0] = float("nan")
    assert not difference(nan, reference) <= 1e9
    assert not largest_difference(nan, reference) <= 1e9
    for ours_text, share in (("abcd", 0.0), ("abxd", 0.25), ("ab", 0.5), ("", 1.0)):
        assert fraction_different(ours_text, "abcd") == share
    assert fraction_different("", "") == 0


def test_the_first_divergence_is_reported() -> None:
    reference = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 1.75], [0.0, 1.0, 0.0]])
    ours = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.75], [3.0, 1.0, 0.0]])
    found = first_divergence(ours, reference, tokenizer(), first=10)
    assert found is not None
    assert (found.position, found.favourite.id, found.other.id, found.margin) == (11, 1, 2, 0.25)
    assert first_divergence(reference, reference, tokenizer()) is None


def test_without_attention_its_proofs_are_skipped(tiny: TinyFactory) -> None:
    report = report_of(tiny("mamba2"))
    found = {proof.name: (proof.verdict, proof.reason) for proof in report.proofs if proof.name.startswith("attention")}
    skipped = ("skipped", "no layer of this model has attention")
    assert found == dict.fromkeys(("attention sums to 1", "attention is causal", "attention adds up"), skipped)
    assert report.check.ok
