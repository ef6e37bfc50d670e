"""Normalizers: text → text, before the pre-tokenizer.

A normalizer is defined by patterns and the replacements of their matches. Both paths follow from this definition: the
plain path, ``stage(text)``, and the path that keeps offsets, ``stage.aligned(text)``. The semantics follow Hugging Face
``tokenizers``, ``normalizers``; BERT's clean-up follows ``tokenization.py`` in google-research/bert.
"""

from __future__ import annotations

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from pellucid.tokenize.patterns.matcher import compiled, matcher
from pellucid.tokenize.patterns.oniguruma_sets import quoted
from pellucid.tokenize.stages.aligned import (
    SHORT,
    AlignedText,
    CharacterMap,
    Decomposed,
    Replacer,
    check_growth,
    decomposed,
    decompositions,
    marks,
    placed,
)
from pellucid.tokenize.stages.decode import byte_letters
from pellucid.tokenize.unicode import Ranges, bracket, letters, members, ranges, singles, small_letters

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]


class Rewrite(Struct, frozen=True):
    """Replaces the matches that ``find`` yields with the results of ``change``, from left to right."""

    find: Callable[[str], Iterable[tuple[int, int]]]
    change: Replacer

    def __call__(self, text: str) -> str:
        out: list[str] = []
        done = length = 0
        for start, stop in self.find(text):
            new = "".join([new for new, _ in self.change(text[start:stop])])
            length += len(new)
            check_growth(len(text), length)
            out += (text[done:start], new)
            done = stop
        return "".join([*out, text[done:]]) if out else text

    def aligned(self, text: AlignedText) -> AlignedText:
        return text.rewritten(self.find(text.text), self.change)


Step = Rewrite | CharacterMap


class Normalizer(ABC):
    """A sequence of rewrites. Subclasses with a faster implementation for plain text override ``__call__``."""

    @abstractmethod
    def steps(self) -> Sequence[Step | Normalizer]:
        """The rewrites, in order."""

    @cached_property
    def rewrites(self) -> Sequence[Step | Normalizer]:
        """``steps``, with adjacent character maps combined. A single map also is the compiled form of the stage."""
        merged: list[Step | Normalizer] = []
        for step in self.steps():
            if merged and isinstance(step, CharacterMap) and isinstance(before := merged[-1], CharacterMap):
                merged[-1] = before.then(step)
            else:
                merged.append(step)
        return merged

    def __call__(self, text: str) -> str:
        before = len(text)
        for step in self.rewrites:
            text = step(text)
            check_growth(before, len(text))
        return text

    def aligned(self, text: AlignedText) -> AlignedText:
        before = len(text)
        for step in self.rewrites:
            text = step.aligned(text)
            check_growth(before, len(text))
        return text


@dataclass(frozen=True)
class Replace(Normalizer):
    """Every ``old`` becomes ``new``; ``old`` is plain text, or a pattern in Oniguruma's syntax if ``is_pattern``."""

    old: str
    new: str
    is_pattern: bool = False

    def steps(self) -> list[Step]:
        if not self.is_pattern and len(self.old) == 1:
            return [CharacterMap({ord(self.old): self.new})]
        find = matcher(self.old if self.is_pattern else quoted(self.old)).spans
        return [Rewrite(find, lambda match: [(self.new, len(match) - 1)])]

    def __call__(self, text: str) -> str:
        if self.is_pattern or not self.old:  # unlike in Python, nothing is replaced in an empty text
            return super().__call__(text)
        check_growth(len(text), len(text) + text.count(self.old) * (len(self.new) - len(self.old)))
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Prepend(Normalizer):
    """Prepends ``prefix`` to a text unless it is empty or, with ``unless_there``, already begins with the prefix."""

    prefix: str
    unless_there: bool = False

    def steps(self) -> list[Rewrite]:
        absent = f"(?!{re.escape(self.prefix)})" if self.unless_there else ""
        return [Rewrite(matches(rf"\A{absent}(?s:.)"), self._change)]

    def _change(self, first: str) -> list[tuple[str, int]]:
        # In ``tokenizers``, the first character of a nonempty prefix replaces the first character of the text.
        return [(self.prefix + first, 0 if self.prefix else -1)]

    def __call__(self, text: str) -> str:
        if not text or (self.unless_there and text.startswith(self.prefix)):
            return text
        check_growth(len(text), len(text) + len(self.prefix))
        return self.prefix + text


@dataclass(frozen=True)
class Normalize(Normalizer):
    """A Unicode normalization form (UAX #15), of Unicode 9 as in ``tokenizers``.

    The normalization of an assigned character never changes between versions. A character that Unicode 9 had not
    assigned stays unchanged. It also separates its neighbours, like a letter that composes with no other character. So
    each run of characters of Unicode 9 is normalized by itself.
    """

    form: Form

    def steps(self) -> list[Rewrite]:
        return [Rewrite(self._changed, self._change)]

    def aligned(self, text: AlignedText) -> AlignedText:
        if self._decomposes and len(text) > SHORT and not self._is_normalized(text.text):
            return decomposed(text, self._decomposed_form)
        return super().aligned(text)

    def _changed(self, text: str) -> Iterator[tuple[int, int]]:
        """The parts of a text to normalize. Neighbours do not affect the normalization of a part."""
        if text.isascii():
            return
        if self._decomposes:
            # Decomposing a character affects only adjacent marks.
            yield from (
                part.span()
                for part in _decomposable(self._decomposed_form).finditer(text)
                if not self._is_normalized(part[0])
            )
            return
        for part in re.finditer(BEHIND, text):  # no character composes with ASCII after it
            for run in compiled(_normalized()).finditer(text, *part.span()):
                if not self._is_normalized(run[0]):
                    yield run.span()

    def _is_normalized(self, run: str) -> bool:
        return _long_mark_runs().search(run) is None and unicodedata.is_normalized(self.form, run)

    def __call__(self, text: str) -> str:
        if not text.isascii() and _long_mark_runs().search(text):
            text = _long_mark_runs().sub(
                lambda run: "".join(part for part, _ in _decomposed(run[0], self._decomposed_form)), text
            )
        if text.isascii() or unicodedata.is_normalized(self.form, text):
            return text
        if _newer_characters().search(text) is None:
            return unicodedata.normalize(self.form, text)
        return compiled(_normalized()).sub(lambda run: unicodedata.normalize(self.form, run[0]), text)  # type: ignore

    @property
    def _decomposed_form(self) -> Decomposed:
        return "NFKD" if self.form in ("NFKC", "NFKD") else "NFD"

    @property
    def _decomposes(self) -> bool:
        return self._decomposed_form == self.form

    def _change(self, run: str) -> list[tuple[str, int]]:
        parts = list(_decomposed(run, self._decomposed_form))
        return placed(parts if self._decomposes else _composed(parts))


@cache
def _normalized() -> str:
    return f"[{bracket('text.normalized')}]+"


@cache
def _decomposable(form: Decomposed) -> re.Pattern[str]:
    """Matches the characters of Unicode 9 that are marks or have a decomposition."""
    return re.compile(f"[{bracket(singles([*decompositions(form), *marks()]))}]+")


BEHIND = r"[\x00-\x7F]?[^\x00-\x7F]+"
"""Matches a run of characters beyond ASCII, and the ASCII character before it, which may compose with the run."""


@cache
def _long_mark_runs() -> re.Pattern[str]:
    """Matches 64 or more marks in a row, because ``unicodedata`` needs quadratic time to order a run of marks.

    Marks are the marks of Unicode 9, and characters that decompose to a mark. ``re`` is used because it turns large
    sets into tables.
    """
    becomes = [code for code, new in decompositions("NFKD").items() if unicodedata.combining(new[0])]
    return re.compile(f"[{bracket(singles([*marks(), *becomes]))}]{{64,}}")


@cache
def _newer_characters() -> Pattern[str]:
    """Matches the characters that Python normalizes and that are newer than Unicode 9."""
    known = set(letters(members("text.normalized") or ()))
    others = (letter for letter in map(chr, range(0x80, 0x20000)) if letter not in known)
    newer = [c for c in others if unicodedata.combining(c) or unicodedata.decomposition(c)]
    return compiled(f"[{''.join(newer)}]" if newer else r"(?!)")


def _decomposed(run: str, form: Form) -> Iterator[tuple[str, int]]:
    """The decomposition of a run with marks in canonical order, as the changes that ``placed`` takes."""
    waiting: list[tuple[str, int]] = []
    for letter in run:
        for at, part in enumerate(unicodedata.normalize(form, letter)):
            if not unicodedata.combining(part):
                waiting.sort(key=lambda item: unicodedata.combining(item[0]))
                yield from waiting
                waiting = []
                yield part, int(at > 0)
            else:
                waiting.append((part, int(at > 0)))
    waiting.sort(key=lambda item: unicodedata.combining(item[0]))
    yield from waiting


def _composed(parts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The canonical composition. A letter composes with every mark that no character in between blocks."""
    out: list[tuple[str, int]] = []
    starter: int | None = None
    last = 0  # the combining class of the last part after the starter
    for part, change in parts:
        kind = unicodedata.combining(part)
        if starter is not None and (starter == len(out) - 1 or last < kind):
            joined = unicodedata.normalize("NFC", out[starter][0] + part)
            if len(joined) == 1:
                out[starter] = (joined, out[starter][1] + change - 1)
                continue
        if not kind:
            starter = len(out)
        out.append((part, change))
        last = kind
    return out


@dataclass(frozen=True)
class Strip(Normalizer):
    """Removes white space at the start (``left``) and the end (``right``)."""

    left: bool
    right: bool

    def steps(self) -> list[Rewrite]:
        ends = [r"\A\p{White_Space}+"] * self.left + [r"\p{White_Space}+\Z"] * self.right
        return [dropping(end) for end in ends]


@dataclass(frozen=True)
class Lowercase(Normalizer):
    """Lower case, character by character: unlike ``str.lower``, without a special case for the final sigma."""

    def steps(self) -> list[Step]:
        return [CharacterMap(small_letters())]

    def __call__(self, text: str) -> str:
        return text.lower() if text.isascii() else text.translate(small_letters())


@dataclass(frozen=True)
class StripAccents(Normalizer):
    """Removes combining marks. Accented characters must be decomposed (NFD) before."""

    def steps(self) -> list[Step]:
        return [replacing(members("text.marks"), "")]


@dataclass(frozen=True)
class Nmt(Normalizer):
    """SentencePiece's clean-up for machine translation: drops control characters, turns white space into spaces."""

    def steps(self) -> list[Step]:
        return [replacing(_NMT_DROPPED, ""), replacing(_NMT_SPACE, " ")]


_NMT_DROPPED = ranges("1-8 B E-1F 7F 8F 9F")
_NMT_SPACE = ranges("9-A C-D 1680 200B-200F 2028-2029 2581 FEFF FFFD")


@dataclass(frozen=True)
class Bert(Normalizer):
    """BERT's clean-up.

    ``clean`` drops control characters and turns all white space into spaces; ``cjk`` puts spaces around ideographs;
    ``strip_accents`` drops the marks of accented letters; ``lowercase`` turns the text to lower case.
    """

    clean: bool = True
    cjk: bool = True
    strip_accents: bool = True
    lowercase: bool = True

    def steps(self) -> list[Step | Normalizer]:
        clean = [replacing(members("bert.dropped"), ""), replacing(members("White_Space"), " ")]
        cjk = [CharacterMap({ord(letter): f" {letter} " for letter in letters(IDEOGRAPHS)})]
        accents = [Normalize("NFD"), replacing(members("bert.marks"), "")]
        return [
            *(clean if self.clean else ()),
            *(cjk if self.cjk else ()),
            *(accents if self.strip_accents else ()),
            *([Lowercase()] if self.lowercase else ()),
        ]

    def __call__(self, text: str) -> str:
        if not text.isascii():
            return super().__call__(text)
        if self.clean:  # the other steps, except lower case, do not change ASCII
            text = text.translate(_CLEAN_ASCII)
        return text.lower() if self.lowercase else text


IDEOGRAPHS = ranges("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B73F 2B740-2B81F 2B920-2CEAF 2F800-2FA1F")
_CLEAN_ASCII = dict.fromkeys([*range(32), 127]) | dict.fromkeys(map(ord, "\t\n\r"), " ")


@dataclass(frozen=True)
class ByteLevel(Normalizer):
    """Spells the bytes of a text in the alphabet of byte-level vocabularies."""

    def steps(self) -> list[Rewrite]:
        return [Rewrite(matches("(?s:.)"), lambda letter: [(self(letter), 0)])]

    def __call__(self, text: str) -> str:
        return "".join(map(byte_letters().__getitem__, text.encode()))


@dataclass(frozen=True)
class Sequential(Normalizer):
    """Normalizers in sequence."""

    stages: tuple[Normalizer, ...]

    def steps(self) -> tuple[Normalizer, ...]:
        return self.stages


def sequence(stages: Sequence[Normalizer]) -> Normalizer | None:
    """The stages as one normalizer, or None if there are no stages."""
    return None if not stages else stages[0] if len(stages) == 1 else Sequential(tuple(stages))


def replacing(which: Ranges | None, new: str) -> CharacterMap:
    """A step that replaces each character in ``which`` by the text ``new``."""
    return CharacterMap(dict.fromkeys(map(ord, letters(which or ())), new))


def dropping(pattern: str) -> Rewrite:
    """A rewrite that removes the matches of a pattern of the ``regex`` package."""
    return Rewrite(matches(pattern), lambda _: [])


def matches(pattern: str) -> Callable[[str], Iterable[tuple[int, int]]]:
    """A function that finds the matches of a pattern of the ``regex`` package. Never pass a pattern from a file."""
    regex = compiled(pattern)
    return lambda text: (match.span() for match in regex.finditer(text))
