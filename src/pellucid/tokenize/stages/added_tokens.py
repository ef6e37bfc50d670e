"""Added tokens: tokens that are matched in the raw text, before all other stages.

In: the text. Out: the text cut into plain parts and added tokens, in order. Control tokens (``<|im_end|>``) are matched
only if the caller allows them in the text (``parse_special``). User-defined tokens (Gemma's runs of newlines,
``<table>``) are text and always matched.

The rules follow Hugging Face ``tokenizers``, ``AddedVocabulary``: the leftmost match wins, then the longest. ``lstrip``
and ``rstrip`` include the white space before and after the token. ``single_word`` requires word boundaries,
``text_start`` the start of the text. Tokens with ``normalized`` are normalized, and matched in the normalized text
instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from pellucid.tokenize.patterns.matcher import compiled
from pellucid.tokenize.unicode import white_space

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
