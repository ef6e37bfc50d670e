"""Tokens that are recognised in the raw text, before anything else happens to it.

In: the text. Out: the same text cut into parts of plain text and of added tokens, in order. Control
tokens (``<|im_end|>``) are recognised only when the caller says that this text may contain them
(``parse_special``); user-defined tokens (Gemma's runs of newlines, ``<table>``) are text and always are.

The rules are those of Hugging Face ``tokenizers``, ``AddedVocabulary``: of the tokens that match, the leftmost
and then the longest wins; ``lstrip``/``rstrip`` swallow the white space beside it; ``single_word`` asks for
word borders; tokens with ``normalized`` are looked for in the normalised text instead, as the normalizer writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pellucid.tokenize.stages.normalize import compiled
from pellucid.tokenize.unicode import white_space

Part = tuple[int, int, int | None]
"""Characters of a text, from and up to, and the id of the added token that they are, or None."""


@dataclass(frozen=True)
class AddedToken:
    """One token that is matched as a whole."""

    id: int
    text: str
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class AddedTokens:
    """Finds added tokens in text.

    Candidates are found by their first character and then looked up by length, longest first, among the
    lengths that tokens with the same first two characters have: no pattern is built from file contents.
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._by_text: dict[str, AddedToken] = {}
        for token in tokens:
            if token.text:
                self._by_text.setdefault(token.text, token)  # of two of the same text the first counts
        lengths: dict[str, set[int]] = {}
        for text in self._by_text:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {start: sorted(sizes, reverse=True) for start, sizes in lengths.items()}
        starts = "".join(sorted({re.escape(text[0]) for text in self._by_text}))
        self._start = re.compile(f"[{starts}]") if starts else None

    def __iter__(self) -> Iterator[AddedToken]:
        return iter(self._by_text.values())

    def split(self, text: str, parse_special: bool) -> list[Part]:
        """Cut ``text`` into parts, none of them empty."""
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
            if (token.special and not parse_special) or (
                token.single_word and not _is_word(text, start, stop)
            ):
                continue
            if token.lstrip:
                start = done + len(text[done:start].rstrip(white_space()))
            if token.rstrip:
                spaces = compiled(r"\p{White_Space}*").match(text, stop)
                position = stop = spaces.end()
            if done < start:
                out.append((done, start, None))
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
    """Whether no word character touches ``text[start:stop]``."""
    word = compiled(r"\w")
    before = start > 0 and word.match(text[start - 1])
    after = stop < len(text) and word.match(text[stop])
    return not before and not after
