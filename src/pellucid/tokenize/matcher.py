"""Where a pattern matches in a text, as Hugging Face ``tokenizers`` finds it. The plain way; compiled code has tables.

In: a pattern in Oniguruma's syntax and a text. Out: the matches from left to right. Three ways lead to them:

- The ``regex`` package runs a pattern of its own that is written from the tree (``regex_tree.py``), on a copy of the
  text in which each character is its class: neither its syntax nor its Unicode matters. It is the fastest, and for
  patterns that it runs in linear time, our own and those of ``patterns.py``.
- Other patterns come from files and may take exponential time in it. Their table (``automaton.py``) is walked, which
  takes a step for each character of a match.
- Patterns that have no table are run by ``regex`` with a limit, which slows it down tenfold.

A matcher has ``RESERVE`` seconds, and gains some with every character that it reads: more than a pattern needs that
reads a text a few times. When they are used up, the text is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cache, cached_property
from typing import TYPE_CHECKING

from pellucid.errors import InvalidRequest
from pellucid.kernels.text_split import START
from pellucid.messages import shown
from pellucid.tokenize.oniguruma import PatternError, parse
from pellucid.tokenize.patterns import LINEAR
from pellucid.tokenize.regex_tree import (
    NEWLINE,
    Atomic,
    Back,
    Chain,
    Classes,
    Edge,
    Either,
    Group,
    Look,
    Node,
    Repeat,
    Set,
    may_be_empty,
    sets,
    walk,
)
from pellucid.tokenize.unicode import CODES, Ranges

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

    from pellucid.tokenize.automaton import Automaton

RESERVE, SECONDS_A_CHARACTER = 1.0, 20e-6
MOST_SETS = 64  # of a pattern without repeats that is no matter for a limit
SEVERAL = 10_000  # steps of a table between looks at the clock
FIRST_CLASS = 0x100  # classes are letters from here on in the copy of a text
MOST_CLASSES = 0xD000


@cache
def matcher(pattern: str) -> Matcher:
    """The matcher of a pattern, made once.

    Raises:
        PatternError: the pattern is wrong, or has something that is not implemented.
    """
    return Matcher(pattern)


class Matcher:
    """The matches of one pattern."""

    def __init__(self, pattern: str) -> None:
        import regex

        self.pattern, self.tree = pattern, parse(pattern)
        self.may_be_empty = may_be_empty(self.tree)
        self._classes = None if _compares(self.tree) else _classes(self.tree)
        self._copy = None if self._classes is None else _Copy(self._classes)
        try:
            self._regex: Pattern[str] = regex.compile(
                _Writer(self._classes, _is_small(self.tree)).written(self.tree)
            )
        except (regex.error, RecursionError, MemoryError, OverflowError) as bad:
            raise PatternError(str(bad) or type(bad).__name__) from None
        self._seconds = RESERVE
        self._is_linear = pattern in LINEAR or _reads_once(self.tree)

    @cached_property
    def _table(self) -> Automaton | None:
        from pellucid.tokenize.automaton import automaton

        return None if self._is_linear else automaton(self.pattern)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The matches, with those that are empty but for one that touches the match before it. An empty text has none.

        Raises:
            InvalidRequest: they take more time than a text of this length may.
        """
        if not text:
            return []
        if self._table is None:
            copy = text if self._copy is None else text.translate(self._copy)
            if self._is_linear and not self.may_be_empty:
                return [found.span() for found in self._regex.finditer(copy)]
        began = time.process_time()
        seconds = min(RESERVE, self._seconds) + SECONDS_A_CHARACTER * len(text)
        try:
            if self._table is not None:
                return self._walked(self._table, text, began + seconds)
            return list(self._searched(copy, began + seconds))
        except TimeoutError:
            began = time.process_time()  # the next text has all of the reserve again
            raise too_slow(self.pattern, f"{seconds:.3g} s for {len(text):,} characters") from None
        finally:
            self._seconds = seconds - (time.process_time() - began)

    def _searched(self, text: str, deadline: float) -> Iterator[tuple[int, int]]:
        """The loop of rust-onig's ``FindMatches``: ``finditer`` goes on in another way behind an empty match."""
        at, last = 0, None
        while at <= len(text):
            found = self._regex.search(text, at, timeout=max(deadline - time.process_time(), 1e-3))
            if found is None:
                return
            start, end = found.span()
            if start == end == last:
                at = end + 1
                continue
            yield start, end
            at = last = end

    @staticmethod
    def _walked(table: Automaton, text: str, deadline: float) -> list[tuple[int, int]]:
        """The same by a table, whose pattern is never empty."""
        kinds, rows, spans = [*table.kinds(text), table.end_of_text], table.rows, list[tuple[int, int]]()
        at, steps = 0, 0
        while at < len(text):
            state, end, position = START, at, at
            while True:
                entry = rows[state][kinds[position]]
                if entry & 1:
                    end = position
                state = entry >> 1
                if state == 0:
                    break
                position += 1
            steps += position - at + 1
            if steps > SEVERAL:
                steps = 0
                if time.process_time() > deadline:
                    raise TimeoutError
            if end > at:
                spans.append((at, end))
            at = max(end, at + 1)
        return spans


def too_slow(pattern: str, limit: str) -> InvalidRequest:
    """The error for a text that takes a pattern more than a limit."""
    return InvalidRequest(
        f"the tokenizer's pattern {shown(pattern)!r} takes more than {limit}; shorten the text, or use a "
        "tokenizer file with another pattern"
    )


def _reads_once(tree: Node) -> bool:
    """Whether a character is hardly looked at again: few sets in branches, of which only the last may be repeated."""
    if not _is_small(tree):
        return False
    for branch in tree.branches if isinstance(tree, Either) else (tree,):
        *before, last = branch.parts if isinstance(branch, Chain) and branch.parts else (branch,)
        last = last.part if isinstance(last, Repeat) else last
        if not all(isinstance(part, Set) for part in (*before, last)):
            return False
    return True


def _is_small(tree: Node) -> bool:
    return sum(isinstance(one, Set) for one in walk(tree)) <= MOST_SETS


def _compares(tree: Node) -> bool:
    """Whether it is asked which characters a group had, not only of which classes."""
    return any(isinstance(one, Back) for one in walk(tree))


def _classes(tree: Node) -> Classes | None:
    classes = Classes(sets(tree))
    return classes if classes.count <= MOST_CLASSES else None


class _Copy(dict[int, str]):
    """A character's class as a letter, for ``str.translate``; each is looked up once."""

    ENTRIES = 1 << 14

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self._classes = classes

    def __missing__(self, code: int) -> str:
        if len(self) >= self.ENTRIES:
            self.clear()
        letter = self[code] = chr(FIRST_CLASS + self._classes.of(code))
        return letter


class _Writer:
    """Writes a tree in the syntax of ``regex``; sets are of classes, or of characters where there are none.

    ``regex`` makes a table for each string in its pattern, in quadratic time that nothing ends: what is not ``small``
    is written so that there are none, with a surrogate in each set, which no text has.
    """

    def __init__(self, classes: Classes | None, small: bool) -> None:
        self._classes, self._filler = classes, "" if small else "\\uDFFF"

    def written(self, node: Node) -> str:
        """The pattern."""
        if isinstance(node, Set):
            return self._set(node.members)
        if isinstance(node, Chain):
            return "".join(map(self.written, node.parts))
        if isinstance(node, Either):
            return f"(?:{'|'.join(map(self.written, node.branches))})"
        if isinstance(node, Repeat):
            most = "" if node.most is None else str(node.most)
            return f"(?:{self.written(node.part)}){{{node.least},{most}}}{'' if node.greedy else '?'}"
        if isinstance(node, Atomic):
            return f"(?>{self.written(node.part)})"
        if isinstance(node, Look):
            return self._look(self.written(node.part), node.ahead, node.negative)
        if isinstance(node, Group):
            return f"(?P<g{node.number}>{self.written(node.part)})"
        if isinstance(node, Back):
            return f"(?P=g{node.number})"
        return self._edge(node)

    @staticmethod
    def _look(part: str, ahead: bool, negative: bool) -> str:
        return f"(?{'' if ahead else '<'}{'!' if negative else '='}{part})"

    def _edge(self, edge: Edge) -> str:
        if edge.kind == "text start":
            return r"\A"
        if edge.kind == "text end":
            return r"\Z"
        if edge.kind == "search start":
            return r"\G"
        if edge.kind in ("border", "no border"):
            word = self._set(edge.members)
            inside, outside = f"(?<={word})", f"(?<!{word})"
            then, otherwise = ("!", "=") if edge.kind == "border" else ("=", "!")
            return f"(?:{inside}(?{then}{word})|{outside}(?{otherwise}{word}))"
        newline = self._set(NEWLINE)
        if edge.kind == "line start":  # no line begins behind a newline that ends the text
            return rf"(?:\A|(?<={newline})(?!\Z))"
        return rf"(?=\Z|{newline})" if edge.kind == "line end" else rf"(?={newline}?\Z)"

    def _set(self, members: Ranges) -> str:
        if self._classes is None:
            found = members
        else:
            found = tuple(
                (FIRST_CLASS + number, FIRST_CLASS + number) for number in self._classes.within[members]
            )
        if not found:
            return "(?!)"
        if found == ((0, CODES - 1),):
            return "(?s:.)"
        runs = "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in found)
        return f"[{runs}{self._filler}]"
