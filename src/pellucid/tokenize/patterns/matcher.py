"""Finds the matches of a pattern in a text in Python, as Hugging Face ``tokenizers`` does; compiled code uses tables.

In: a pattern in Oniguruma's syntax and a text. Out: the matches from left to right. There are three methods:

- Python's ``re`` runs a pattern that is generated from the syntax tree (``patterns/tree.py``). It runs on a copy of the
  text in which a letter for its class replaces each character. So neither the syntax nor the Unicode version of ``re``
  matters. This is the fastest method. It is used for patterns that a backtracking engine runs in linear time: the
  patterns of ``patterns/published.py``, patterns with ``is_linear``, and patterns that rarely read a character twice.
- Other patterns come from files and may take exponential time. Their table (``automaton.py``) is walked; a walk from
  each start position reads a character at most once.
- Patterns without a table run in the ``regex`` package with a timeout, which makes ``regex`` ten times slower.

The last two methods have a :class:`Budget` of time; a text that exceeds the budget is refused.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import accumulate, chain
from types import ModuleType
from typing import TYPE_CHECKING

from pellucid.errors import InvalidRequest, shown
from pellucid.tokenize.patterns import tree as nodes
from pellucid.tokenize.patterns.oniguruma import PatternError, parse
from pellucid.tokenize.patterns.published import LINEAR
from pellucid.tokenize.unicode import CODES, Ranges

if TYPE_CHECKING:
    from regex import Pattern  # type: ignore[import-untyped]

    from pellucid.tokenize.patterns.automaton import Automaton

MIN_SECONDS, SECONDS_PER_CHARACTER = 1.0, 20e-6
# Maximum number of sets in a pattern that may run without a timeout. Patterns with more sets are written without
# strings (``_Writer``).
MAX_SETS = 64
STEPS_PER_CLOCK_CHECK = 10_000  # table steps between checks of the clock
FIRST_CLASS = 0x100  # the code point of class 0 in the copy of a text
MAX_CLASSES = 0xD000


def matcher(pattern: str, is_linear: bool = False) -> Matcher:
    """The matcher of a pattern, cached. ``is_linear`` states that the pattern takes linear time.

    Raises PatternError: the pattern is invalid, or has a construct that is not implemented.
    """
    return _matcher(pattern, is_linear)


@cache
def _matcher(pattern: str, is_linear: bool) -> Matcher:
    return Matcher(pattern, is_linear)


class Budget:
    """The thread time that patterns may take for a text: ``total`` and ``seconds`` remaining."""

    def __init__(self, characters: int) -> None:
        self.total = self.seconds = MIN_SECONDS + SECONDS_PER_CHARACTER * characters


class Matcher:
    """Finds the matches of one pattern. Thread-safe."""

    def __init__(self, pattern: str, is_linear: bool = False) -> None:
        self.pattern, self.tree = pattern, parse(pattern)
        self.may_be_empty = nodes.may_be_empty(self.tree)
        self._is_linear = is_linear or pattern in LINEAR or (not self.may_be_empty and _reads_once(self.tree))
        # A back reference compares characters, not only their classes.
        compares = any(isinstance(node, nodes.Back) for node in nodes.walk(self.tree))
        self._classes = None if compares else _classes(self.tree)
        self._copy = None if self._classes is None else _ClassLetters(self._classes)
        engine = _engine(self.tree, self._is_linear)
        try:
            self._compiled = engine.compile(_Writer(self._classes, _is_small(self.tree)).written(self.tree))
        except (engine.error, RecursionError, MemoryError, OverflowError) as bad:
            raise PatternError(str(bad) or type(bad).__name__) from None

    @cached_property
    def _table(self) -> Automaton | None:
        if self._is_linear:
            return None
        from pellucid.tokenize.patterns.automaton import automaton

        return automaton(self.pattern)

    def pieces(self, text: str) -> list[str] | None:
        """The matched texts if they cover the whole text and need no timeout, else None."""
        if not self._is_linear or self._copy is None:
            return None
        ends = [*accumulate(map(len, self._compiled.findall(text.translate(self._copy))))]
        if not ends or ends[-1] != len(text):
            return None
        return [text[start:stop] for start, stop in zip(chain((0,), ends), ends)]

    def spans(self, text: str, budget: Budget | None = None) -> list[tuple[int, int]]:
        """The spans of the matches. An empty match right after another match is skipped. An empty text has no matches.

        Raises InvalidRequest: matching exceeds the budget (None: the budget of a text of this length).
        """
        if not text:
            return []
        table = self._table
        if table is None:
            copy = text if self._copy is None else text.translate(self._copy)
            if self._is_linear:
                return [match.span() for match in self._compiled.finditer(copy)]
        budget = budget or Budget(len(text))
        began = time.thread_time()
        try:
            if table is not None:
                return self._walked(table, text, began + budget.seconds)
            return list(self._searched(copy, began + budget.seconds))
        except TimeoutError:
            raise too_slow(self.pattern, f"{budget.total:.3g} s") from None
        finally:
            budget.seconds -= time.thread_time() - began

    def _searched(self, text: str, deadline: float) -> Iterator[tuple[int, int]]:
        """The loop of rust-onig's ``FindMatches``; ``finditer`` differs in how it continues after an empty match."""
        at, last = 0, None
        while at <= len(text):
            match = self._search(text, at, deadline)
            if match is None:
                return
            start, end = match
            if start == end == last:
                at = end + 1
                continue
            yield start, end
            at = last = end

    def _search(self, text: str, at: int, deadline: float) -> tuple[int, int] | None:
        """The next match. Runs ``regex`` again if it timed out too early, because it counts the time of all threads."""
        timeout = deadline - time.thread_time()
        while timeout > 0:
            try:
                match = self._compiled.search(text, at, timeout=timeout)
            except TimeoutError:
                timeout = min(2 * timeout, deadline - time.thread_time())
                continue
            return None if match is None else match.span()
        raise TimeoutError

    @staticmethod
    def _walked(table: Automaton, text: str, deadline: float) -> list[tuple[int, int]]:
        """The spans of the matches by a table walk; a pattern with a table has no empty matches."""
        from pellucid.kernels.text.split import START

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
            if steps > STEPS_PER_CLOCK_CHECK:
                steps = 0
                if time.thread_time() > deadline:
                    raise TimeoutError
            if end > at:
                spans.append((at, end))
            at = max(end, at + 1)
        return spans


def _engine(tree: nodes.Node, is_linear: bool) -> ModuleType:
    """The module that runs a tree: ``re`` or ``regex``.

    ``re`` is twice as fast. ``regex`` has all constructs and timeouts, but importing it takes 12 ms.
    """
    has_atomic = any(isinstance(node, nodes.Atomic) for node in nodes.walk(tree))
    if is_linear and (sys.version_info >= (3, 11) or not has_atomic):
        return re
    import regex

    module: ModuleType = regex
    return module


@cache
def compiled(pattern: str) -> Pattern[str]:
    """A compiled pattern of the ``regex`` package. Never pass a pattern from a file."""
    import regex

    return regex.compile(pattern)


def too_slow(pattern: str, limit: str) -> InvalidRequest:
    """The error for a text on which a pattern exceeds a limit."""
    return InvalidRequest(
        f"the tokenizer's pattern {shown(pattern)!r} takes more than {limit}; shorten the text, or use a "
        "tokenizer file with another pattern"
    )


def _reads_once(tree: nodes.Node) -> bool:
    """True if each branch is a few sets and only the last set may be repeated, so characters are rarely read twice."""
    if nodes.size(tree) > 4 * MAX_SETS:
        return False
    for branch in tree.branches if isinstance(tree, nodes.Either) else (tree,):
        *before, last = branch.parts if isinstance(branch, nodes.Concat) and branch.parts else (branch,)
        last = last.part if isinstance(last, nodes.Repeat) else last
        if not all(isinstance(part, nodes.Set) for part in (*before, last)):
            return False
    return True


def _is_small(tree: nodes.Node) -> bool:
    return sum(isinstance(node, nodes.Set) for node in nodes.walk(tree)) <= MAX_SETS


def _classes(tree: nodes.Node) -> nodes.Classes | None:
    classes = nodes.Classes(nodes.sets(tree))
    return classes if classes.count <= MAX_CLASSES else None


class _ClassLetters(dict[int, str]):
    """Code point → the letter for its class, for ``str.translate``; lookups are cached."""

    ENTRIES = 1 << 14

    def __init__(self, classes: nodes.Classes) -> None:
        super().__init__()
        self._classes = classes

    def __missing__(self, code: int) -> str:
        if len(self) >= self.ENTRIES:
            self.clear()
        letter = self[code] = chr(FIRST_CLASS + self._classes.of(code))
        return letter


class _Writer:
    """Writes a tree in the syntax of ``re`` and ``regex``, with sets of classes (of characters if ``classes`` is None).

    ``regex`` builds a table for each string in its pattern, in quadratic time without a timeout. A pattern that is not
    ``small`` is written without strings: each set also has a surrogate, which no text contains.
    """

    def __init__(self, classes: nodes.Classes | None, small: bool) -> None:
        self._classes, self._filler = classes, "" if small else "\\uDFFF"

    def written(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.Set):
            return self._set(node.members)
        if isinstance(node, nodes.Concat):
            return "".join(map(self.written, node.parts))
        if isinstance(node, nodes.Either):
            return f"(?:{'|'.join(map(self.written, node.branches))})"
        if isinstance(node, nodes.Repeat):
            most = "" if node.most is None else str(node.most)
            return f"(?:{self.written(node.part)}){{{node.least},{most}}}{'' if node.greedy else '?'}"
        if isinstance(node, nodes.Atomic):
            return f"(?>{self.written(node.part)})"
        if isinstance(node, nodes.Look):
            return self._look(self.written(node.part), node.ahead, node.negative)
        if isinstance(node, nodes.Group):
            return f"(?P<g{node.number}>{self.written(node.part)})"
        if isinstance(node, nodes.Back):
            return f"(?P=g{node.number})"
        return self._edge(node)

    @staticmethod
    def _look(part: str, ahead: bool, negative: bool) -> str:
        return f"(?{'' if ahead else '<'}{'!' if negative else '='}{part})"

    def _edge(self, edge: nodes.Edge) -> str:
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
        newline = self._set(nodes.NEWLINE)
        if edge.kind == "line start":  # no line begins after a newline at the end of the text
            return rf"(?:\A|(?<={newline})(?!\Z))"
        return rf"(?=\Z|{newline})" if edge.kind == "line end" else rf"(?={newline}?\Z)"

    def _set(self, members: Ranges) -> str:
        if self._classes is None:
            runs = members
        else:
            runs = tuple((FIRST_CLASS + number, FIRST_CLASS + number) for number in self._classes.within[members])
        if not runs:
            return "(?!)"
        if runs == ((0, CODES - 1),):
            return "(?s:.)"
        written = "".join(f"\\U{low:08X}-\\U{high:08X}" for low, high in runs)
        return f"[{written}{self._filler}]"
