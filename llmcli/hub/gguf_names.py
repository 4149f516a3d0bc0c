"""GGUF files by their names: which are models, which files belong together, and which model a tag means.

Names are those of files in a repo or a folder, with "/" between folders. The rules are those of llama.cpp's ``-hf``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from llmcli.errors import LlmcliError
from llmcli.files.gguf import PART, first_name

# What is chosen without a tag: the first of these that is there, otherwise the first file by name.
PREFERRED = ("Q4_K_M", "Q8_0", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q5_K_S", "IQ4_NL", "IQ4_XS", "BF16", "F16", "F32")
MOST_NAMED = 20  # models that an error lists

_COMPANION = re.compile(r".*(mmproj|imatrix).*|(mtp|eagle3|dflash|dspark)-.*", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![a-z0-9])((?:ud-)?(?:i?q\d(?:_[a-z0-9]+)*|tq\d_\d|mxfp4(?:_moe)?|nvfp4|bf16|fp?16|fp?32))(?![a-z0-9_])",
    re.IGNORECASE,
)
# No folder or file begins with a dot, so that no name leads out of a folder.
_SAFE = re.compile(r"(?:[^\\/:*?\"<>|. ][^\\/:*?\"<>|]*/)*[^\\/:*?\"<>|. ][^\\/:*?\"<>|]*\.gguf", re.IGNORECASE)


def is_file_name(text: str) -> bool:
    """Whether a text is the name of a GGUF file that is safe as part of a path."""
    return len(text) <= 300 and text.isprintable() and _SAFE.fullmatch(text) is not None


def models_among(names: Iterable[str]) -> dict[str, list[str]]:
    """The GGUF models among file names, by the name of their first file, and those of its files that are there.

    Files that only accompany a model, such as a vision encoder, are not models; names that could lead out of a folder
    are skipped.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if is_file_name(name) and not _COMPANION.fullmatch(name.rpartition("/")[2]):
            found.setdefault(first_name(name), []).append(name)
    return found


def label_of(name: str) -> str:
    """The quantization that a file's name states, such as "Q4_K_M" or "UD-Q4_K_XL"; "" if it states none."""
    found = _LABEL.findall(_stem(name))
    return found[-1].upper() if found else ""


def choose(names: Collection[str], wanted: str | None) -> str:
    """The model among file names that ``wanted`` means: a tag such as "q4_k_m", a file's name, or None for any.

    Returns its first file. Raises LlmcliError, which lists the models there are, if there is no such model.
    """
    found = models_among(names)
    if wanted is None:
        ranked = [*(name for tag in PREFERRED for name in _tagged(found, tag)), *found]
        if ranked:
            return ranked[0]
    elif wanted.lower().endswith(".gguf"):
        first = first_name(wanted)
        if first in found or wanted in names:  # a file that is named is not judged by its name
            return first
    elif tagged := _tagged(found, wanted):
        return tagged[0]
    raise LlmcliError(
        "it has no GGUF file" if wanted is None else f"it has no GGUF file {wanted}",
        f"it has {listed(found)}" if found else "check the name",
    )


def listed(models: Iterable[str]) -> str:
    """The shortest names of models, for people; not all of many."""
    names = list(models)
    found = list(dict.fromkeys(_shortest(name, names) for name in names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    return ", ".join(found) + (f" and {more} more" if more > 0 else "")


def name_among(file: str, names: Iterable[str]) -> str:
    """The shortest text by which ``choose`` finds ``file`` among the names: its quantization, or else its name."""
    return _shortest(file, models_among(names))


def _shortest(file: str, models: Iterable[str]) -> str:
    label = label_of(file)
    return label if label and next(iter(_tagged(models, label)), file) == file else file


def _tagged(found: Iterable[str], tag: str) -> list[str]:
    """The names that state a tag, best first: as the whole quantization, then the shortest name."""
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9_])", re.IGNORECASE)
    matching = [name for name in found if pattern.search(_stem(name))]
    return sorted(matching, key=lambda name: (label_of(name) != tag.upper(), len(name), name))


def _stem(name: str) -> str:
    """The name without its suffix and the number of its part."""
    match = PART.fullmatch(name)
    return match[1] if match else name[: -len(".gguf")]
