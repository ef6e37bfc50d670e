"""Splitting normalised text into the pieces that the model sees.

In: text. Out: its pieces in order. A stage is a callable ``(text, first) → pieces``; stages run one inside the
pieces of another. The semantics are those of Hugging Face ``tokenizers``, ``pre_tokenizers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pellucid.tokenize.bert_unicode import PUNCTUATION, members
from pellucid.tokenize.patterns import COVERING

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

    from pellucid.tokenize.base import PreTokenizer
    from pellucid.tokenize.compiled import Step


@dataclass(frozen=True)
class Split:
    """Split at the matches of a pattern (syntax of the ``regex`` package).

    ``behavior`` says what becomes of a match: a piece of its own, nothing, or the end or the start of its
    neighbour; ``Contiguous`` joins matches that touch. ``invert`` swaps matches and gaps.
    """

    pattern: str
    behavior: str = "Isolated"
    invert: bool = False

    @cached_property
    def _regex(self) -> Pattern[str]:
        import regex

        return regex.compile(self.pattern)

    def __call__(self, text: str, first: bool) -> list[str]:
        if self.pattern in COVERING and self.behavior == "Isolated":
            pieces: list[str] = self._regex.findall(text)
            return pieces
        parts: list[tuple[str, bool]] = []
        done = 0
        for found in self._regex.finditer(text):
            start, stop = found.span()
            if start == stop:
                continue
            if done < start:
                parts.append((text[done:start], self.invert))
            parts.append((text[start:stop], not self.invert))
            done = stop
        if done < len(text):
            parts.append((text[done:], self.invert))
        return _arrange(parts, self.behavior)


def _arrange(parts: list[tuple[str, bool]], behavior: str) -> list[str]:
    """Pieces from (text, is a match) in order."""
    if behavior == "Isolated":
        return [text for text, _ in parts]
    if behavior == "Removed":
        return [text for text, match in parts if not match]
    out: list[str] = []
    previous = behavior == "MergedWithNext"
    for text, match in parts if behavior != "MergedWithNext" else reversed(parts):
        if behavior == "Contiguous":
            join = bool(out) and match == previous
        elif behavior == "MergedWithPrevious":
            join = bool(out) and match and not previous
        else:
            join = bool(out) and match and not previous
        if join:
            out[-1] = text + out[-1] if behavior == "MergedWithNext" else out[-1] + text
        else:
            out.append(text)
        previous = match
    return out[::-1] if behavior == "MergedWithNext" else out


@dataclass(frozen=True)
class Sequential:
    """Each stage splits the pieces of the one before it."""

    stages: tuple[PreTokenizer, ...]

    def __call__(self, text: str, first: bool) -> list[str]:
        pieces = [text]
        for stage in self.stages:
            if len(pieces) == 1:
                pieces = stage(pieces[0], first)
            else:
                pieces = [piece for at, part in enumerate(pieces) for piece in stage(part, first and at == 0)]
        return pieces


def sequence(stages: Sequence[PreTokenizer]) -> PreTokenizer | None:
    """The stages as one, or None if there are none."""
    return None if not stages else stages[0] if len(stages) == 1 else Sequential(tuple(stages))


def as_steps(stage: PreTokenizer | None) -> list[Step] | None:
    """The stages as compiled code takes them; None if it cannot."""
    from pellucid.tokenize.automaton import automaton
    from pellucid.tokenize.compiled import Step

    stages = () if stage is None else stage.stages if isinstance(stage, Sequential) else (stage,)
    steps = []
    for one in stages:
        table = automaton(one.pattern) if isinstance(one, Split) else None
        if table is None or not isinstance(one, Split):
            return None
        steps.append(Step(table, one.behavior, one.invert))
    return steps


@dataclass(frozen=True)
class PrefixSpace:
    """Put ``space`` before a text that does not start with it; only before the whole text if ``only_first``."""

    space: str = " "
    only_first: bool = False

    def __call__(self, text: str, first: bool) -> list[str]:
        if text.startswith(self.space) or (self.only_first and not first):
            return [text]
        return [self.space + text]


@dataclass(frozen=True)
class Translate:
    """Replace plain text before the next stage splits (Metaspace's space → ``▁``)."""

    old: str
    new: str

    def __call__(self, text: str, first: bool) -> list[str]:
        return [text.replace(self.old, self.new)]


@dataclass(frozen=True)
class BertSplit:
    """BERT's words: split at white space, which is dropped, and around every punctuation character."""

    @cached_property
    def _regex(self) -> Pattern[str]:
        import regex

        mark = rf"!-/:-@\[-`{{-~{members(PUNCTUATION)}"
        # Plain letters first: they need not be looked for in the long class.
        return regex.compile(rf"(?:[0-9A-Za-z]+|[^\p{{White_Space}}{mark}])+|[{mark}]")

    def __call__(self, text: str, first: bool) -> list[str]:
        pieces: list[str] = self._regex.findall(text)
        return pieces
