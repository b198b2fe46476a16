"""How a text is cut before byte-pair encoding, by the name that GGUF files give it (``tokenizer.ggml.pre``).

Only those are listed whose rules are known for certain: a wrong cut gives wrong ids without any error.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = "|".join([_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _PUNCTUATION, _LINES_AND_SPACES])
_QWEN2 = "|".join([_CONTRACTIONS, _WORD, r"\p{N}", _PUNCTUATION, _LINES_AND_SPACES])
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        _LINES_AND_SPACES,
    ]
)


@dataclass(frozen=True)
class PreTokenizer:
    """One family's rules around byte-level BPE.

    Attributes:
        names: values of ``tokenizer.ggml.pre``.
        pattern: regular expression whose matches are the pieces; None uses GPT-2's, which the library has built in.
        digits_first: every digit is split off before anything else.
        nfc: Unicode is composed first.
        whole_words: a piece that is in the vocabulary is taken as it is, without merges.
        adds_bos: a text starts with the begin-of-text token unless the file says otherwise.
    """

    names: tuple[str, ...]
    pattern: str | None = None
    digits_first: bool = False
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The library's pre-tokenizer."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.digits_first:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)

    def build_normalizer(self) -> normalizers.Normalizer | None:
        """The library's normalizer, if there is anything to normalize."""
        return normalizers.NFC() if self.nfc else None


PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(("gpt-2", "default")),
    PreTokenizer(("smollm", "starcoder", "refact"), digits_first=True),
    PreTokenizer(("llama-bpe", "llama3", "llama-v3"), pattern=_LLAMA3, whole_words=True, adds_bos=True),
    PreTokenizer(("qwen2",), pattern=_QWEN2, nfc=True),
    PreTokenizer(("tekken",), pattern=_TEKKEN, whole_words=True, adds_bos=True),
)


def find_pre_tokenizer(name: str) -> PreTokenizer | None:
    """The rules of that name, or None."""
    return next((rules for rules in PRE_TOKENIZERS if name in rules.names), None)


def pre_tokenizer_names() -> list[str]:
    """Every known name."""
    return [name for rules in PRE_TOKENIZERS for name in rules.names]
