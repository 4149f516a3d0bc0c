"""The JSON forms of reports and events, whose keys are stable: programs read them (see docs/json.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from llmcli import endpoint, explain, generation, render, text
from llmcli.generation.filters import OPTIONS, Filter, settings_of
from llmcli.render.numbers import ModelLabel, significant

if TYPE_CHECKING:
    from llmcli.files.run_log import Run
    from llmcli.hub.cache import LocalModel

# Keys of numbers that no model computed, and of those that must be exact to replay a draw.
EXACT = frozenset(
    (
        *("value", "temperature", "u", "u_low", "u_high", "mu", *OPTIONS),
        *("prefill_seconds", "decode_seconds", "share", "theta", "factor"),
    )
)


def record(report: Any) -> Any:
    """Return a report as JSON values, with its fields' names as keys: bytes in hex, null for NaN and infinities."""
    if is_dataclass(report):
        shown = (field.name for field in fields(report) if field.metadata.get("json", True))
        return {name: record(getattr(report, name)) for name in shown}
    if isinstance(report, Mapping):
        return {str(key): record(value) for key, value in report.items()}
    if isinstance(report, list | tuple):
        return [record(part) for part in report]
    if isinstance(report, bytes):
        return report.hex()
    return finite(report) if isinstance(report, float) else report


def with_dtypes(form: Mapping[str, Any], models: Sequence[ModelLabel]) -> dict[str, Any]:
    """Return a view's JSON object with its models and their dtypes first; a report that has a dtype keeps its own."""
    if not models or "dtype" in form:
        return dict(form)
    if "models" in form:
        first = {"models": form["models"], "dtypes": [model.dtype for model in models]}
        if any(model.quantization for model in models):
            first["quantizations"] = [model.quantization for model in models]
    else:
        first = named(models[0])
    return {**first, **{key: value for key, value in form.items() if key not in first}}


def named(model: ModelLabel) -> dict[str, Any]:
    """Return the keys that name a model: ``quantization`` only if its weights are quantized."""
    quantization = {} if model.quantization is None else {"quantization": model.quantization}
    return {"model": model.name, "dtype": model.dtype, **quantization}


def rounded(form: Any, digits: int | None, key: str = "") -> Any:
    """Return JSON values with at most ``digits`` significant digits, except those whose ``key`` is in EXACT."""
    if isinstance(form, dict):
        return {name: rounded(value, digits, name) for name, value in form.items()}
    if isinstance(form, list):
        return [rounded(value, digits, key) for value in form]
    return significant(form, digits) if isinstance(form, float) and key not in EXACT else form


def finite(number: float) -> float | None:
    """Return ``number``, or None for NaN and infinities, which JSON cannot represent."""
    return number if math.isfinite(number) else None


def filter_settings(filter: Filter) -> dict[str, Any]:
    """Return a filter's name, its value, and its other numbers by option name."""
    return {"name": filter.name, "value": filter.value, **settings_of(filter)}


def logged_run(run: Run) -> dict[str, Any]:
    """Return the record of ``log --json``: a run without the numbers that only its repetition needs."""
    form: dict[str, Any] = record(run)
    del form["replay"]
    return {"id": form.pop("id"), **form}


def generation_start(
    model: ModelLabel,
    prompt_ids: Sequence[int] | None,
    seed: int | None,
    filters: Sequence[Mapping[str, Any]],
    cached: int | None = None,
) -> dict[str, Any]:
    """Return the first record of ``generate --json``.

    ``filters`` are in the form of ``filter_settings``. ``cached`` is the number of prompt tokens that a prompt cache
    held, if one was given. For a server's model,
    ``prompt_ids`` are unknown, and so is ``seed`` unless one was requested.
    """
    start = {
        "type": "start",
        **named(model),
        "prompt_ids": None if prompt_ids is None else list(prompt_ids),
        "seed": seed,
        "sampler": list(filters),
    }
    return start if cached is None else {**start, "cached": cached}


def generated_token(report: explain.GeneratedToken) -> dict[str, Any]:
    """Return the record of one generated token."""
    return {
        "type": "token",
        "index": report.index,
        "id": report.id,
        "text": report.text,
        "bytes": report.bytes.hex(),
        "logprob": report.logprob,
        "prob": report.prob,
        "final_prob": report.final_prob,
        "rank": report.rank,
        "entropy": report.entropy,
        "u": report.u,
        "top": [{"id": rival.id, "text": rival.text, "prob": rival.prob} for rival in report.top],
    }


def generation_end(
    finish: str,
    text: str,
    tokens: int,
    prefill_seconds: float,
    decode_seconds: float,
    proposals: tuple[int, int] | None = None,
    valid: bool | None = None,
) -> dict[str, Any]:
    """Return the last record of ``generate --json``.

    ``proposals`` counts the tokens proposed and accepted, with speculative decoding; ``valid`` says whether the text
    satisfies the grammar, if one was given.
    """
    end = {
        "type": "end",
        "finish": finish,
        "text": text,
        "tokens": tokens,
        "prefill_seconds": prefill_seconds,
        "decode_seconds": decode_seconds,
    }
    if proposals is not None:
        end |= {"guessed": proposals[0], "kept": proposals[1]}
    return end if valid is None else {**end, "valid": valid}


def of_sample(sample: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``record`` with the number of the sample that it belongs to."""
    return {"type": record["type"], "sample": sample, **record}


def sample_end(row: generation.Sample) -> dict[str, Any]:
    """Return the last record of one of several samples."""
    return {
        "type": "end",
        "finish": row.finish,
        "text": row.text,
        "tokens": row.tokens,
        "mean_logprob": row.mean_logprob,
        **({} if row.valid is None else {"valid": row.valid}),
    }


def tokenization(report: explain.Tokenization) -> dict[str, Any]:
    """Return the record of ``tokenize --json``."""
    return {
        "model": report.model,
        "count": len(report.tokens),
        "tokens": [_token(token) for token in report.tokens],
        "unknown": report.unknown,
        "check": record(report.check),
    }


def _token(token: text.Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "bytes": token.bytes.hex(),
        "start": token.start,
        "end": token.end,
        "special": token.special,
    }


def model(found: LocalModel) -> dict[str, Any]:
    """Return the record of one model of ``models --json``."""
    return {
        "name": found.name,
        "family": found.family,
        "format": found.format or None,
        "bytes": found.bytes,
        "last_use": iso_time(found.last_use),
        "where": found.where,
        "state": found.state,
        "folder": str(found.folder),
    }


def iso_time(moment: float | None) -> str | None:
    """Return a POSIX time in ISO 8601, in UTC and to the second."""
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="seconds")


def step(report: explain.StepReport) -> dict[str, Any]:
    """Return the record of ``explain-step --json``."""
    form: dict[str, Any] = {
        "step": report.step,
        "prompt_ids": list(report.prompt_ids),
        "context_ids": list(report.context_ids),
        "sampler": [record(stage) for stage in report.sampler],
        "seed": report.seed,
        "entropy": report.entropy,
        "candidates": [
            {
                "rank": row.rank,
                "id": row.id,
                "text": row.text,
                "logit": row.logit,
                "adjusted": finite(row.adjusted),
                "p": row.p,
                "p_temperature": row.p_temperature,
                "cut": row.cut,
                "p_final": row.p_final,
                "cumulative": row.cumulative,
                "u_low": row.u_low,
                "u_high": row.u_high,
            }
            for row in report.candidates
        ],
        "chosen": {
            "id": report.chosen.id,
            "u": report.chosen.u,
            "p_final": report.chosen.p_final,
            "surprisal": report.chosen.surprisal,
        },
        "check": {
            "ok": report.check.ok,
            "replayed_id": report.check.replayed_id,
            "sum_error": report.check.sum_error,
        },
    }
    if report.columns:
        form["temperatures"] = [
            {
                "temperature": column.temperature,
                "used": column.used,
                "entropy": column.entropy,
                "effective_choices": column.choices,
                "drawn": {"id": column.id, "text": column.text},
                "probs": [
                    {"id": id, "p_alone": column.alone[id], "p_final": prob} for id, prob in column.probs.items()
                ],
            }
            for column in report.columns
        ]
    return form


def quiz(report: explain.TourReport) -> dict[str, Any]:
    """Return the record of ``tour --quiz --json``: that of the tour, and its questions."""
    return {**record(report), "quiz": [record(question) for question in render.quiz_questions(report)]}


def server_step(report: endpoint.ServerStep) -> dict[str, Any]:
    """Return a server's step with the keys of ``step``: null for what a server does not send.

    ``rest`` is the probability of all tokens that the server does not list.
    """
    unknown = ("logit", "adjusted", "p_temperature", "cut", "p_final", "cumulative", "u_low", "u_high")
    return {
        "step": report.step,
        "prompt_ids": None,
        "context_ids": None,
        "sampler": None,
        "seed": report.seed,
        "entropy": None,
        "candidates": [
            {
                "rank": row.rank,
                "id": row.token.id,
                "text": row.token.text,
                "logprob": row.token.logprob,
                "p": row.token.prob,
                **dict.fromkeys(unknown),
            }
            for row in report.candidates
        ],
        "rest": report.rest,
        "chosen": {
            "id": report.chosen.id,
            "text": report.chosen.text,
            "u": None,
            "p_final": None,
            "surprisal": report.surprisal,
        },
        "check": record(report.check),
    }
