"""The compiled library, and the structures that it shares with Python (``src/model.h``)."""

from __future__ import annotations

import ctypes
import sys
import zlib
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
PATH = Path(__file__).with_name(f"llmcli_native{SUFFIX}")  # written by hatch_build.py


class Matrix(ctypes.Structure):
    """A matrix [rows, cols] whose rows are ``stride`` bytes apart; all but the first ``stored`` are in ``rest``."""

    _fields_ = (
        *((name, c_void_p) for name in ("data", "bias", "rest")),
        ("stride", c_int64),
        *((name, c_int32) for name in ("rows", "stored", "cols", "format")),
    )


class Norm(ctypes.Structure):
    """The weight of a norm, its offset included, and its bias, both fp32."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(ctypes.Structure):
    """A block of the transformer."""

    _fields_ = (
        *((name, Norm) for name in ("attn", "attn_post", "mlp", "mlp_post", "q", "k")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down", "router")),
        ("experts", POINTER(Matrix)),
        ("sinks", c_void_p),
        ("curve", c_float * 2),
        *((name, c_int32) for name in ("window", "rope", "experts_count", "experts_per_token")),
    )


class Model(ctypes.Structure):
    """A whole model."""

    _fields_ = (
        ("layers", POINTER(Layer)),
        *((name, Matrix) for name in ("embedding", "positions", "head")),
        *((name, Norm) for name in ("embedded", "final")),
        *((name, c_float) for name in ("embedding_scale", "residual_scale", "logit_scale", "logit_cap")),
        *((name, c_float) for name in ("attention_scale", "attention_cap", "norm_eps")),
        *((name, c_float) for name in ("qkv_limit", "gate_limit", "up_offset", "query_growth")),
        *((name, c_int32) for name in ("query_context", "layers_count", "hidden", "heads", "kv_heads", "head_dim")),
        ("rotated", c_int32 * 2),
        *((name, c_int32) for name in ("inner", "cache_format", "activation", "layer_norm", "parallel")),
        *((name, c_int32) for name in ("shared_norm", "gated", "norm_experts", "qk_norm_full")),
        *((name, c_int32) for name in ("qk_norm_per_head", "norm_after_rope", "unused")),
    )


class Buffers(ctypes.Structure):
    """A layer's keys and values of one text, from position ``first`` on."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p), ("capacity", c_int64), ("first", c_int64))


class Row(ctypes.Structure):
    """One token of a step."""

    _fields_ = (
        ("layers", c_void_p),
        ("cos", c_void_p * 2),
        ("sin", c_void_p * 2),
        ("logits", c_void_p),
        ("token", c_int64),
        ("position", c_int64),
    )


SOURCES = Path(__file__).with_name("src")  # may be absent where llmcli is installed


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The library, or None if it was not built for this machine."""
    try:
        found = ctypes.CDLL(str(PATH))
        found.engine_sources.restype = c_uint32
    except (OSError, AttributeError):  # not built, or built from older sources
        return None
    if SOURCES.is_dir() and found.engine_sources() != fingerprint():
        return None
    found.engine_distribution.restype = c_void_p
    found.engine_multiply.restype = c_int
    found.engine_create.restype, found.engine_create.argtypes = c_void_p, (POINTER(Model), c_int)
    found.engine_destroy.restype, found.engine_destroy.argtypes = None, (c_void_p,)
    found.engine_step.restype, found.engine_step.argtypes = c_int, (c_void_p, POINTER(Row), c_int)
    found.engine_unembed.restype, found.engine_unembed.argtypes = c_int, (c_void_p, c_void_p, POINTER(Row), c_int)
    found.engine_restore.restype = None
    found.engine_restore.argtypes = (c_void_p, POINTER(Matrix), c_int, c_void_p)
    found.engine_multiply.argtypes = (c_void_p, POINTER(Matrix), c_void_p, c_int64, c_int, c_void_p)
    found.engine_variant.restype = found.engine_choose.restype = c_char_p
    found.engine_choose.argtypes = (c_int,)
    return found


def fingerprint() -> int:
    """A number that identifies the sources, as ``hatch_build.py`` computes it for the library."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir())))


def variant() -> str | None:
    """The kind of processor that the library was compiled for and runs on, such as "avx2"; None without the library."""
    found = library()
    return None if found is None else bytes(found.engine_variant()).decode()
