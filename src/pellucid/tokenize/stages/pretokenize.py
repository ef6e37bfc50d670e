"""Stages that cut text: added tokens, then the pre-tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from msgspec import Struct

from pellucid.tokenize.patterns.matcher import Budget, Matcher, compiled, matcher
from pellucid.tokenize.patterns.oniguruma_sets import literal
from pellucid.tokenize.stages.aligned import AlignedText
from pellucid.tokenize.unicode import white_space

if TYPE_CHECKING:
    from pellucid.tokenize.stages.normalize import Normalizer

# Added tokens: tokens that are matched in the raw text, before all other stages.
#
# In: the text. Out: the text cut into plain parts and added tokens, in order. Control tokens (``<|im_end|>``) are
# matched only if the caller allows them in the text (``parse_special``). User-defined tokens (Gemma's runs of newlines,
# ``<table>``) are text and always matched.
#
# The rules follow Hugging Face ``tokenizers``, ``AddedVocabulary``: the leftmost match wins, then the longest.
# ``lstrip`` and ``rstrip`` include the white space before and after the token. ``single_word`` requires word
# boundaries, ``text_start`` the start of the text. Tokens with ``normalized`` are normalized, and matched in the
# normalized text instead.

Part = tuple[int, int, int | None]
"""The start and end of a part of a text in characters, and the id of an added token, None for text."""


class AddedToken(Struct, frozen=True):
    """A token that is matched as a whole."""

    id: int
    text: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    text_start: bool = False


class AddedTokens:
    """Finds added tokens in text.

    A search finds positions where the first character of a token occurs. At such a position the lengths of all tokens
    with the same first two characters are tried, longest first. No pattern is built from file contents.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._by_text: dict[str, AddedToken] = {}
        for token in tokens:
            if token.text:
                self._by_text.setdefault(token.text, token)  # the first of two equal texts wins
        lengths: dict[str, set[int]] = {}
        for text in self._by_text:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {start: sorted(sizes, reverse=True) for start, sizes in lengths.items()}
        starts = "".join(sorted(map(re.escape, {text[0] for text in self._by_text})))
        self._start = re.compile(f"[{starts}]") if starts else None

    def __iter__(self) -> Iterator[AddedToken]:
        return iter(self._by_text.values())

    def split(self, text: str, parse_special: bool) -> list[Part]:
        """Cut ``text`` into nonempty parts."""
        if self._start is None:
            return [(0, len(text), None)] if text else []
        out: list[Part] = []
        done = position = 0
        while candidate := self._start.search(text, position):
            start = candidate.start()
            token = self._longest(text, start)
            if token is None:
                position = start + 1
                continue
            position = stop = start + len(token.text)
            if (token.special and not parse_special) or (token.text_start and start > 0):
                continue
            if token.single_word and not _is_word(text, start, stop):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(white_space()))
            if token.rstrip:
                spaces = compiled(r"\p{White_Space}*").match(text, stop)
                stop = spaces.end()  # a token may begin in this white space
            if done < start:
                out.append((done, start, None))
            if start < stop:  # else the previous token includes this white space
                out.append((start, stop, token.id))
                done = stop
        if done < len(text):
            out.append((done, len(text), None))
        return out

    def _longest(self, text: str, start: int) -> AddedToken | None:
        for prefix in (text[start : start + 2], text[start]):
            for length in self._lengths.get(prefix, ()):
                if token := self._by_text.get(text[start : start + length]):
                    return token
        return None


def _is_word(text: str, start: int, stop: int) -> bool:
    """True if no word character touches ``text[start:stop]``."""
    word = compiled(r"\w")
    before = start > 0 and word.match(text[start - 1])
    after = stop < len(text) and word.match(text[stop])
    return not before and not after


# Pre-tokenizers: split normalized text into the pre-tokens that the model stage sees. In: text. Out: its pre-tokens in
# order. Each step cuts or changes the parts from the step before it. The semantics follow Hugging Face ``tokenizers``,
# ``pre_tokenizers``.

Spans = list[tuple[int, int]]


class Split(Struct, frozen=True, dict=True):
    """Splits at the matches of a pattern in Oniguruma's syntax.

    ``behavior`` determines the result for a match: ``Isolated`` makes it a part of its own, ``Removed`` drops it,
    ``MergedWithPrevious`` and ``MergedWithNext`` join it to the part before or after it, ``Contiguous`` joins adjacent
    matches. ``invert`` swaps matches and gaps. ``is_linear`` states that the pattern takes linear time; never set it
    for a pattern from a file.
    """

    pattern: str
    behavior: str = "Isolated"
    invert: bool = False
    is_linear: bool = False

    @cached_property
    def _matcher(self) -> Matcher:
        return matcher(self.pattern, self.is_linear)

    def __call__(self, text: str) -> list[str]:
        return self.cut(text)

    def cut(self, text: str, budget: Budget | None = None) -> list[str]:
        """The parts of a text, within a budget. Raises like ``spans``."""
        if self.behavior == "Isolated" and (pieces := self._matcher.pieces(text)) is not None:
            return pieces
        return [text[start:stop] for start, stop in self.spans(text, budget)]

    def spans(self, text: str, budget: Budget | None = None) -> Spans:
        """The spans of the parts. Raises :class:`InvalidRequest` if matching exceeds the budget."""
        matches = self._matcher.spans(text, budget)
        if self.behavior == "Removed" and self.invert:
            return [(start, stop) for start, stop in matches if start < stop]
        parts: list[tuple[int, int, bool]] = []
        done = 0
        for start, stop in matches:
            if done < start:
                parts.append((done, start, self.invert))
            parts.append((start, stop, not self.invert))
            done = stop
        if done < len(text):
            parts.append((done, len(text), self.invert))
        return [(start, stop) for start, stop in _arrange(parts, self.behavior) if start < stop]


def _arrange(parts: list[tuple[int, int, bool]], behavior: str) -> Spans:
    """The spans of the parts, from (start, stop, True for a match) in order."""
    if behavior == "Isolated":
        return [(start, stop) for start, stop, _ in parts]
    if behavior == "Removed":
        return [(start, stop) for start, stop, match in parts if not match]
    out: Spans = []
    previous = backwards = behavior == "MergedWithNext"
    for start, stop, match in reversed(parts) if backwards else parts:
        join = match == previous if behavior == "Contiguous" else match and not previous
        if out and join:
            low, high = out[-1]
            out[-1] = (min(low, start), max(high, stop))
        else:
            out.append((start, stop))
        previous = match
    return out[::-1] if backwards else out


class Chunks(Struct, frozen=True):
    """Splits into parts of ``length`` characters; the last part may be shorter."""

    length: int

    def cut(self, text: str, budget: Budget | None = None) -> list[str]:
        return [text[start:stop] for start, stop in self.spans(text)]

    def spans(self, text: str, budget: Budget | None = None) -> Spans:
        return [(at, min(at + self.length, len(text))) for at in range(0, len(text), self.length)]


class NormalizeStep(Struct, frozen=True):
    """A normalizer as a step; with ``only_first``, it applies only to a part at the start of the whole text."""

    normalizer: Normalizer
    only_first: bool = False


Stage = Split | Chunks | NormalizeStep


class PreTokenizer(Struct, frozen=True, dict=True):
    """A sequence of steps (``stages``), each applied to the parts from the step before it."""

    stages: tuple[Stage, ...] = ()

    @property
    def has_first(self) -> bool:
        """True if a step changes only the start of the text."""
        return any(isinstance(stage, NormalizeStep) and stage.only_first for stage in self.stages)

    @cached_property
    def _needs_offsets(self) -> bool:
        """True if a cut before an ``only_first`` change may drop the start of the text."""
        firsts = [at for at, stage in enumerate(self.stages) if isinstance(stage, NormalizeStep) and stage.only_first]
        return bool(firsts) and not all(isinstance(stage, NormalizeStep) for stage in self.stages[: firsts[-1]])

    def __call__(self, text: str, first: bool) -> Iterable[str]:
        """The pre-tokens of a text; ``first`` is True if it begins the whole text."""
        if first and self._needs_offsets:
            return [piece.text for piece in self.aligned(AlignedText.of(text))]
        pieces, budget = [text], Budget(len(text))
        for stage in self.stages:
            if not isinstance(stage, NormalizeStep):
                cut = stage.cut
                pieces = (
                    cut(pieces[0], budget)
                    if len(pieces) == 1
                    else [part for piece in pieces for part in cut(piece, budget)]
                )
            elif not stage.only_first:
                pieces = list(map(stage.normalizer, pieces))
            elif first:
                pieces = [stage.normalizer(pieces[0])]  # one part: all steps before this one are changes
        return pieces

    @cached_property
    def changing(self) -> PreTokenizer:
        """The steps up to and including the last step that changes text."""
        changes = [at for at, stage in enumerate(self.stages) if isinstance(stage, NormalizeStep)]
        return PreTokenizer(self.stages[: changes[-1] + 1 if changes else 0])

    def aligned(self, text: AlignedText) -> Iterator[AlignedText]:
        """The pre-tokens of an aligned text."""
        pieces, budget = [text], Budget(len(text))
        for stage in self.stages:
            if not isinstance(stage, NormalizeStep):
                pieces = [piece.part(*span) for piece in pieces for span in stage.spans(piece.text, budget)]
                continue
            change = stage.normalizer.aligned
            pieces = [
                piece if stage.only_first and (not piece.text or piece.starts[0] > 0) else change(piece)
                for piece in pieces
            ]
        return (piece for piece in pieces if piece.text)


_MARK = literal("bert.punctuation")

PUNCTUATION = Split(f"[{_MARK}]")
"""Splits around every punctuation character."""

BERT = Split(rf"[^\s{_MARK}]+|[{_MARK}]", "Removed", invert=True)
"""BERT's words: split at white space, which is dropped, and around every punctuation character."""

WHITE_SPACE = Split(r"\s+", "Removed")
"""Splits at white space, which is dropped."""

BEFORE_SPACES = Split("▁", "MergedWithNext")
"""Splits before every ``▁``, as Metaspace does."""

WORDS = Split(r"[\w\u200C\u200D]+|[^\w\u200C\u200D\s]+", "Removed", invert=True)
"""Splits into words and runs of other characters, without white space; ``\\w`` as in Rust's ``regex``."""
