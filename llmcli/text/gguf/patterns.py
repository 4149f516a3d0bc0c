"""How the byte-level tokenizers that GGUF files name divide a text into words before BPE.

A GGUF file has the name of its pre-tokenizer (llama.cpp's, src/llama-vocab.cpp), not the rules. The rules here are
those of each original model's tokenizer.json. llama.cpp approximates a few of them: it takes every letter beyond ASCII
as both uppercase and lowercase, and does not compose characters. There, the ids here are the original tokenizer's.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
ASCII_SIGNS = r"!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~"
# Letters with case, which \p{L} does not tell from others.
CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
CHINESE_JAPANESE = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _words(numbers: str, letters: str = r"\p{L}", marks: str = "") -> str:
    """Words with one sign or space before them, numbers, and other signs with the line breaks after them."""
    return rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{numbers}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|{SPACES}"


def _cased_words(numbers: str, endings: str = rf"{ENDINGS}?") -> str:
    """Words that a capital letter after a small one ends."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{before}[{UPPER}]*[{LOWER}]+{endings}|{before}[{UPPER}]+[{LOWER}]*{endings}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3, QWEN2 = _words(r"\p{N}{1,3}"), _words(r"\p{N}")
SIGNED = rf"[{ASCII_SIGNS}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
FINNISH = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


@dataclass(frozen=True)
class Words:
    """How a text is divided: by each pattern in turn, into its matches and what is between them.

    ``nfc``: characters are composed first. ``whole``: a word that is a token is not built by merges. ``bos``: a text
    begins with BOS unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    bos: bool = False

    def apply(self, fast: FastTokenizer) -> None:
        """Set the normalizer and the pre-tokenizer of ``fast``."""
        if self.nfc:
            fast.normalizer = normalizers.NFC()
        # The library has GPT-2's own pattern built in.
        last = self.patterns[-1] == GPT2
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns[: -1 if last else None]
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last))
        fast.pre_tokenizer = pre_tokenizers.Sequence(steps)


_SHARED: tuple[tuple[Words, tuple[str, ...]], ...] = (
    (
        Words((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        ("default",),
    ),
    (
        Words((GPT2,)),
        (
            *("gpt-2", "phi-2", "jais", "trillion", "granite-docling", "exaone4", "gigachat"),
            *("a.x-4.0", "mellum"),
        ),
    ),
    (Words((GPT2,), nfc=True), ("olmo", "mpt")),
    (
        Words((r"\p{N}", GPT2)),
        ("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    (Words((r"\p{N}", GPT2), nfc=True), ("command-r",)),
    (Words((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")), ("falcon",)),
    (
        Words((LLAMA3,), whole=True, bos=True),
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    (Words((LLAMA3,)), ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")),
    (Words((QWEN2,), nfc=True), ("qwen2",)),
    (
        Words((QWEN2,)),
        ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "kormo", "f2llmv2", "solar-open", "grok-2"),
    ),
    (Words((_words(r"\p{N}", r"\p{L}\p{M}", r"\p{M}"),), nfc=True), ("qwen35",)),
    (Words((r"\p{N}{1,3}", _words(r"\p{N}+")), whole=True), ("minicpm5",)),
    (Words((r"[^\n]+|[\n]+", QWEN2)), ("laguna",)),
    (
        Words(
            (
                r"[\r\n]",
                rf"\s?[{CASED}]+",
                r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                ASIAN,
                r"\p{N}+",
            )
        ),
        ("deepseek-llm",),
    ),
    (Words((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", ASIAN, r"\p{N}")), ("deepseek-coder",)),
    (
        Words((r"\p{N}{1,3}", CHINESE_JAPANESE, SIGNED)),
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    (Words((_cased_words(r"\p{N}", ""),), whole=True, bos=True), ("tekken",)),
    (Words((_cased_words(r"\p{N}{1,3}"),)), ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    (
        Words((r"\d{1,3}(?=(?:\d{3})*\b)", _cased_words(r"\p{N}{1,3}"))),
        ("tiny_aya", "cohere2moe"),
    ),
    (Words((r"\p{N}+", r"(?=(\d{3})+(?!\d))")), ("superbpe",)),
    (Words((FINNISH,)), ("poro-chat", "bloom", "gpt3-finnish")),
    (Words((FINNISH, r"\p{N}")), ("viking",)),
    (
        Words(
            (
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
        ("bailingmoe", "bailingmoe2", "llada-moe"),
    ),
    (
        Words((rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}",)),
        ("seed-coder",),
    ),
    (
        Words(
            (
                rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
            )
        ),
        ("exaone-moe",),
    ),
    (
        Words(
            (
                "<sentinel:[0-9]+>",
                "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                r"([\t\n]|    |  )",
                r"\p{N}",
                r"[\p{P}!-/:-@\[-`{-~]",
                GPT2,
            ),
            bos=True,
        ),
        ("chameleon",),
    ),
)
WORDS: dict[str, Words] = {name: words for words, names in _SHARED for name in names}
