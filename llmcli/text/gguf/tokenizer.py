"""The tokenizer of a GGUF file, from its metadata: byte-level BPE, SentencePiece BPE and Unigram.

The metadata has the tokens with their types, and either merges or scores. How a text is divided into words it only
names; the rules are in ``patterns``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from llmcli.text.gguf.patterns import WORDS
from llmcli.text.gguf.vocabulary import (
    BYTE_LEVEL,
    ENDS,
    GEMMA4,
    PREFIX,
    SENTENCEPIECE,
    UNIGRAM,
    Kind,
    Vocabulary,
    bytes_value,
    flag_value,
    list_value,
    metadata_error,
    numbers,
    text_value,
)

SPACE = "\u2581"  # SentencePiece's stand-in for a space
NO_TEXT = (Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE)
PHI3 = re.compile("phi-?3")  # in the names of models whose control tokens take the spaces after them
KEEPING_SPACES = ("<unk>", "<s>", "<|endoftext|>")  # the others of Phi-3


def build_tokenizer(vocabulary: Vocabulary) -> FastTokenizer:
    """Return the tokenizer that the metadata of ``vocabulary`` describes.

    Raises LlmcliError if the metadata contradicts itself, and the errors of the library ``tokenizers``.
    """
    metadata = vocabulary.metadata
    fast = _BUILDERS[vocabulary.model](metadata, vocabulary)
    fast.add_tokens(list(_added(metadata, vocabulary)))
    _insert_ends(fast, metadata, vocabulary)
    return fast


def _byte_level(metadata: Mapping[str, object], vocabulary: Vocabulary) -> FastTokenizer:
    """Byte-level BPE with the merges of the file."""
    words = WORDS.get(_pre(metadata))
    if words is None:
        raise metadata_error(
            f"the file's pre-tokenizer {_pre(metadata)!r:.40} is unknown", "open the model that the file was made from"
        )
    ids = vocabulary.ids
    fast = FastTokenizer(models.BPE(ids, _stored_merges(metadata, ids), ignore_merges=words.whole))
    words.apply(fast)
    fast.decoder = decoders.ByteLevel()
    return fast


def _stored_merges(metadata: Mapping[str, object], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges of the file, in order; of equal ones the first counts."""
    merges: dict[tuple[str, str], None] = {}
    for merge in list_value(metadata, "merges"):
        if not isinstance(merge, str):
            raise metadata_error(f"{PREFIX}merges has an entry that is not text")
        cut = merge.find(" ", 1)
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise metadata_error(f"{PREFIX}merges has {merge!r:.60}, which does not join two tokens to a third")
        merges[left, right] = None
    return list(merges)


def _sentencepiece(metadata: Mapping[str, object], vocabulary: Vocabulary) -> FastTokenizer:
    """SentencePiece BPE: the merges follow from the scores, but Gemma 4's are in the file."""
    ids, own = vocabulary.ids, vocabulary.model == GEMMA4
    if own:
        merges = _stored_merges(metadata, ids)
    else:
        merges = list(_merges(vocabulary, ids, numbers(metadata, "scores", len(vocabulary.tokens))))
    unknown = vocabulary.text("unknown")
    fast = FastTokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = flag_value(metadata, "add_space_prefix", not own)
    # The space comes before the text, and before each part that follows a token found in the text.
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(SPACE)] if prefix else []
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    fast.decoder = _space_decoder(prefix, decoders.ByteFallback())
    return fast


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int], scores: Sequence[float]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that joins to a third, the third with the highest score first.

    No text joins to a control token or a byte.
    """
    parts = {token: id for token, id in ids.items() if vocabulary.kinds[id] not in NO_TEXT}
    for token in sorted(parts, key=lambda token: -scores[parts[token]]):
        for cut in range(1, len(token)):
            if (left := token[:cut]) in parts and (right := token[cut:]) in parts:
                yield left, right


def _unigram(metadata: Mapping[str, object], vocabulary: Vocabulary) -> FastTokenizer:
    """SentencePiece's unigram model."""
    scores = map(float, numbers(metadata, "scores", len(vocabulary.tokens)))
    size = max(vocabulary.ids.values(), default=-1) + 1
    pieces = list(zip(vocabulary.tokens, scores, strict=True))[:size]
    fast = FastTokenizer(models.Unigram(pieces, vocabulary.roles.get("unknown"), False))
    steps: list[normalizers.Normalizer] = []
    if f"{PREFIX}precompiled_charsmap" in metadata:
        steps.append(normalizers.Precompiled(bytes_value(metadata, "precompiled_charsmap")))
    merged = flag_value(metadata, "remove_extra_whitespaces", False)
    if merged:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
    prefix = merged or flag_value(metadata, "add_space_prefix", False)
    if prefix:  # not before spaces only
        steps += [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A (?= *\z)"), "")]
    fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    fast.decoder = _space_decoder(prefix)
    return fast


_BUILDERS = {BYTE_LEVEL: _byte_level, SENTENCEPIECE: _sentencepiece, GEMMA4: _sentencepiece, UNIGRAM: _unigram}


def _space_decoder(prefix: bool, *steps: decoders.Decoder) -> decoders.Decoder:
    """Write SentencePiece's spaces as spaces, without the one before the text if a ``prefix`` was put there."""
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    return decoders.Sequence([decoders.Replace(SPACE, " "), *steps, decoders.Fuse(), *strip])


def _added(metadata: Mapping[str, object], vocabulary: Vocabulary) -> Iterator[AddedToken]:
    """The tokens that are found in a text before it is divided: control tokens, and those that a user defined."""
    phi3 = PHI3.search((text_value(metadata, "general.name") or "").lower()) is not None
    for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True):
        special = kind in (Kind.UNKNOWN, Kind.CONTROL) or token in ENDS
        if special or kind == Kind.USER_DEFINED:
            rstrip = phi3 and special and token not in KEEPING_SPACES
            yield AddedToken(token, special=special, normalized=False, rstrip=rstrip)


def _insert_ends(fast: FastTokenizer, metadata: Mapping[str, object], vocabulary: Vocabulary) -> None:
    """Make ``fast`` put BOS before a text and EOS after it, where the file or its kind of tokenizer says so."""
    model = vocabulary.model
    usual_bos = model in (SENTENCEPIECE, GEMMA4) or (model == BYTE_LEVEL and WORDS[_pre(metadata)].bos)
    sequence: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    inserted = {}
    for role, at, usual in (("bos", 0, usual_bos), ("eos", 2, model == UNIGRAM)):
        token = vocabulary.text(role)
        if not flag_value(metadata, f"add_{role}_token", usual and token is not None):
            continue
        if token is None:
            raise metadata_error(f"{PREFIX}add_{role}_token is true, but {PREFIX}{role}_token_id is missing")
        inserted[token] = {"id": token, "ids": [vocabulary.roles[role]], "tokens": [token]}
        sequence.insert(at, {"SpecialToken": {"id": token, "type_id": 0}})
    if inserted:
        pair = [*sequence, {"Sequence": {"id": "B", "type_id": 1}}]
        state = {"type": "TemplateProcessing", "single": sequence, "pair": pair, "special_tokens": inserted}
        made = processors.TemplateProcessing()
        made.__setstate__(json.dumps(state).encode())
        fast.post_processor = made


def _pre(metadata: Mapping[str, object]) -> str:
    """The name of the pre-tokenizer; files of before names were given mean the default one."""
    return text_value(metadata, f"{PREFIX}pre") or "default"
