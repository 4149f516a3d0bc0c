"""A walk through a text as one HTML page, which works without a network: its data, its style and its program.

The page recomputes the sampler in the browser. Only the texts of ``assets/`` run there: a Content-Security-Policy with
their hashes forbids everything else, and no text of a model or a user becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcli import explain
from llmcli.files.atomic import replace_text
from llmcli.render.numbers import ModelLabel
from llmcli.render.picture import Caption
from llmcli.render.text import token_label

if TYPE_CHECKING:
    from llmcli.text.tokenizer import Tokenizer

SCRIPTS = ("sampler.js", "data.js", "page.js")
WHOLE = 16384  # tokens: a smaller vocabulary is stored whole
LISTED = 4096  # tokens stored one by one of a larger vocabulary
HIGHEST, ROOM = 2**24 - 1, 2**20  # the code of the largest logit, and codes left below to keep unequal ones apart
SPAN = 256.0  # logits that are farther below the largest one have no probability
BINS = 256  # of the tokens that are not stored one by one
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Logits:
    """A step's logits in the form of the page, and the ids of the tokens that are stored one by one."""

    form: dict[str, Any]
    ids: Array


def save_page(path: Path, walk: explain.Walkthrough, tokenizer: Tokenizer, model: ModelLabel, caption: Caption) -> int:
    """Write the page to ``path`` and return its size in bytes. Raises LlmcliError if it cannot be written."""
    text = page_html(walk, tokenizer, model, caption)
    replace_text(path, text)
    return len(text.encode())


def page_html(walk: explain.Walkthrough, tokenizer: Tokenizer, model: ModelLabel, caption: Caption) -> str:
    """Return the page. ``tokenizer`` names the tokens, ``caption`` the command line."""
    style, script = _parts()
    hashes = page_hashes()
    policy = (
        f"default-src 'none'; style-src '{hashes[0]}'; script-src '{hashes[1]}'; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(_data(walk, tokenizer, model, caption), separators=(",", ":"), allow_nan=False)
    parts = {"POLICY": policy, "STYLE": style, "SCRIPT": script, "DATA": data.replace("<", "\\u003c")}
    page = _asset("page.html")
    for name, part in parts.items():
        page = page.replace(f"{{{{{name}}}}}", part, 1)
    return page


def page_hashes() -> tuple[str, str]:
    """The hashes of the page's style and of its program, by which a Content-Security-Policy allows them."""
    style, script = map(_hash, _parts())
    return style, script


def _parts() -> tuple[str, str]:
    return _asset("page.css"), "".join(map(_asset, SCRIPTS))


def _asset(name: str) -> str:
    return files("llmcli.render").joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(walk: explain.Walkthrough, tokenizer: Tokenizer, model: ModelLabel, caption: Caption) -> dict[str, Any]:
    logits = [_logits(choice.adjusted.numpy()) for choice in walk.choices]
    steps = [_step(choice, packed.form) for choice, packed in zip(walk.choices, logits, strict=True)]
    shown = {id for packed in logits for id in packed.ids.tolist()}.union(*map(_ids_in_views, walk.choices))
    vocabulary = len(walk.choices[0].logits)
    ids = np.array(sorted(shown), dtype="<u4")
    return {
        "command": caption.lines()[0],
        "model": str(model),
        "digits": model.digits,
        "seed": walk.seed,
        "vocabulary": vocabulary,
        "prompt": [token_label(piece) for piece in walk.prompt],
        "labels": [token_label(explain.vocab_entry(tokenizer, id)) for id in ids.tolist()],
        "ids": None if len(ids) == vocabulary else _base64(ids),
        "controls": [{"name": control.name, "value": control.value} for control in walk.controls],
        "fixed": list(walk.fixed),
        "softcap": walk.choices[0].why.softcap is not None,
        "steps": steps,
        "check": {
            "ok": walk.checked.ok,
            "claims": [{"what": claim.what, "error": _short(claim.error)} for claim in walk.checked.claims],
        },
    }


def _ids_in_views(choice: explain.ExplainedChoice) -> set[int]:
    """The tokens that the views of one choice name."""
    nodes = _nodes(choice.branch.children)
    named = {choice.step.chosen.id, choice.why.other.id, *(row.id for row in choice.step.candidates)}
    return named | {row.top.id for row in choice.lens.rows} | {node.piece.id for node in nodes}


def _nodes(children: Sequence[explain.Node]) -> list[explain.Node]:
    return [node for child in children for node in (child, *_nodes(child.children))]


def _step(choice: explain.ExplainedChoice, logits: dict[str, Any]) -> dict[str, Any]:
    """One choice in the form of the page."""
    report, own = choice.step, choice.logits.double()
    changed = ((choice.adjusted != choice.logits) & choice.adjusted.isfinite()).nonzero()[:, 0].tolist()
    return {
        "token": report.chosen.id,
        "given": choice.given,
        "u": report.chosen.u,
        "entropy": _short(report.entropy),
        "logits": logits,
        "own": {"log_total": float(own.logsumexp(dim=-1)), "changed": [[id, float(own[id])] for id in changed]},
        "recorded": [[row.id, row.p_final] for row in report.candidates],
        "lens": [
            [row.layer, row.top.id, _short(row.p_top), _short(row.p), row.rank, _short(row.entropy), _short(row.kl)]
            for row in choice.lens.rows
        ],
        "other": choice.why.other.id,
        "parts": [[part.name, _short(part.token), _short(part.other)] for part in choice.why.parts],
        "tree": _tree(choice.branch.children),
        "heads": None if choice.heads is None else _heads(choice.heads),
    }


def _tree(children: Sequence[explain.Node]) -> list[Any]:
    """The nodes below one node: each its token, its probability and the nodes below it."""
    return [[node.piece.id, _short(node.p), _tree(node.children)] for node in children]


def _heads(heads: explain.HeadMaps) -> dict[str, Any]:
    """The maps of all heads, in 16 bits: attention weights in 65535ths, contributions in 32767ths of the largest."""
    added = heads.contributions.double().numpy()
    largest = float(np.abs(added).max()) or 1.0
    return {
        "layers": list(heads.layers),
        "weights": _base64(np.rint(heads.weights.numpy().clip(0, 1) * 65535).astype("<u2")),
        "contributions": _base64(np.rint(added / largest * 32767).astype("<i2")),
        "largest": largest,
    }


def _logits(logits: Array) -> _Logits:
    """Pack the finite ones of ``logits`` [V]. Of a large vocabulary, only the LISTED most probable are kept apart."""
    finite = np.flatnonzero(np.isfinite(logits))
    ranked = finite[np.lexsort((finite, -logits[finite]))]
    listed = ranked if len(ranked) <= WHOLE else ranked[:LISTED]
    codes, low, scale = _codes(logits[listed].astype(np.float64))
    whole = len(listed) == len(logits)
    form: dict[str, Any] = {
        "ids": None if whole else _base64(listed.astype("<u4")),
        "codes": _base64(
            (codes[np.argsort(listed)] if whole else codes).astype("<u4").view("u1").reshape(-1, 4)[:, :3]
        ),
        "low": low,
        "scale": scale,
        "rest": None if len(listed) == len(ranked) else _rest(logits[ranked[len(listed) :]].astype(np.float64)),
    }
    return _Logits(form, listed)


def _codes(values: Array) -> tuple[Array, float, float]:
    """Codes of 24 bits for descending ``values``, and the numbers low and scale: a value is about low + code scale.

    The codes have the order of the values, and only equal values have equal codes.
    """
    clipped = values.clip(min=values[0] - SPAN)
    scale = float(clipped[0] - clipped[-1]) / (HIGHEST - ROOM) or 1.0
    nearest = HIGHEST - np.rint((clipped[0] - clipped) / scale).astype(np.int64)
    before = np.concatenate(([0], np.cumsum(np.diff(values) != 0)))  # unequal values before each
    return np.minimum.accumulate(nearest + before) - before, float(clipped[0]) - HIGHEST * scale, scale


def _rest(values: Array) -> dict[str, str]:
    """Logits grouped by size: how many are in each group, their mean and their variance."""
    low, high = values.min(), values.max()
    group = np.minimum(((values - low) / ((high - low) or 1.0) * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(group, minlength=BINS)
    used = np.flatnonzero(counts)[::-1]  # the largest first
    means = np.bincount(group, weights=values, minlength=BINS) / np.maximum(counts, 1)
    variances = np.bincount(group, weights=(values - means[group]) ** 2, minlength=BINS) / np.maximum(counts, 1)
    return {
        "counts": _base64(counts[used].astype("<u4")),
        "means": _base64(means[used].astype("<f4")),
        "variances": _base64(variances[used].astype("<f4")),
    }


def _base64(numbers: Array) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def _short(number: float) -> float:
    """The number with seven significant digits, as many as fp32 has."""
    return float(f"{number:.7g}")
