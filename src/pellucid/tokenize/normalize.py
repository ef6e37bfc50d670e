"""Text → text, before it is split. Each stage is a callable ``(text, first) → text``.

The semantics are those of Hugging Face ``tokenizers``, ``normalizers``; BERT's clean-up is that of
``tokenization.py`` in google-research/bert. Unicode data are those of Python's ``unicodedata`` and ``regex``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from pellucid.tokenize import bert_unicode

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

    from pellucid.tokenize.base import Normalizer


@dataclass(frozen=True)
class Replace:
    """Every ``old`` becomes ``new``; ``old`` is plain text, or a pattern when ``is_pattern``."""

    old: str
    new: str
    is_pattern: bool = False

    def __call__(self, text: str, first: bool) -> str:
        if not self.is_pattern:
            return text.replace(self.old, self.new)
        replaced: str = _compiled(self.old).sub(lambda _: self.new, text)
        return replaced


@dataclass(frozen=True)
class Prepend:
    """``prefix`` before every text that is not empty."""

    prefix: str

    def __call__(self, text: str, first: bool) -> str:
        return self.prefix + text if text else text


@dataclass(frozen=True)
class Form:
    """A Unicode normalisation form (UAX #15)."""

    form: Literal["NFC", "NFD", "NFKC", "NFKD"]

    def __call__(self, text: str, first: bool) -> str:
        return unicodedata.normalize(self.form, text)


@dataclass(frozen=True)
class Strip:
    """Without white space at the start (``left``) and the end (``right``)."""

    left: bool
    right: bool

    def __call__(self, text: str, first: bool) -> str:
        text = _compiled(r"\A\p{White_Space}+").sub("", text) if self.left else text
        return _compiled(r"\p{White_Space}+\Z").sub("", text) if self.right else text


@dataclass(frozen=True)
class Lowercase:
    """Lower case, character by character: unlike ``str.lower``, a final sigma is like any other."""

    def __call__(self, text: str, first: bool) -> str:
        return text.replace("Σ", "σ").lower()


@dataclass(frozen=True)
class StripAccents:
    """Without non-spacing marks. Accents that are part of a character must be split off before (NFD)."""

    def __call__(self, text: str, first: bool) -> str:
        return _without(bert_unicode.MARKS, text)


@dataclass(frozen=True)
class Bert:
    """BERT's clean-up.

    ``clean`` drops control characters and makes all white space a space; ``cjk`` puts spaces around
    ideographs; ``strip_accents`` drops the marks of accented letters; ``lowercase`` is what it says.
    """

    clean: bool = True
    cjk: bool = True
    strip_accents: bool = True
    lowercase: bool = True

    def __call__(self, text: str, first: bool) -> str:
        if self.clean:
            text = _compiled(r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F\p{Co}]+").sub("", text)
            text = _without(bert_unicode.FORMAT, text)
            text = _compiled(r"\p{White_Space}").sub(" ", text)
        if not text.isascii():
            if self.cjk:
                text = _compiled(_IDEOGRAPH).sub(r" \g<0> ", text)
            if self.strip_accents:
                text = StripAccents()(unicodedata.normalize("NFD", text), first)
        return Lowercase()(text, first) if self.lowercase else text


_IDEOGRAPH = (
    r"[\u4E00-\u9FFF\u3400-\u4DBF\U00020000-\U0002A6DF\U0002A700-\U0002B73F"
    r"\U0002B740-\U0002B81F\U0002B920-\U0002CEAF\uF900-\uFAFF\U0002F800-\U0002FA1F]"
)


@dataclass(frozen=True)
class Sequential:
    """One after another."""

    stages: tuple[Normalizer, ...]

    def __call__(self, text: str, first: bool) -> str:
        for stage in self.stages:
            text = stage(text, first)
        return text


def sequence(stages: Sequence[Normalizer]) -> Normalizer | None:
    """The stages as one, or None if there are none."""
    return None if not stages else stages[0] if len(stages) == 1 else Sequential(tuple(stages))


@cache
def _compiled(pattern: str) -> Pattern[str]:
    import regex

    return regex.compile(pattern)


@cache
def _class(ranges: str) -> Pattern[str]:
    return _compiled(f"[{bert_unicode.members(ranges)}]+")


def _without(ranges: str, text: str) -> str:
    """The text without these characters, none of which is ASCII; the long class is not tried on ASCII."""
    if text.isascii():
        return text
    members = _class(ranges)
    kept: str = _compiled(r"[^\x00-\x7F]+").sub(lambda run: members.sub("", run[0]), text)
    return kept
