"""Parser for patterns in Oniguruma's syntax, which ``tokenizer.json`` files call ``Regex``.

In: the pattern. Out: a tree (``patterns/tree.py``). Constructs have the meaning of Oniguruma 6.9.10, which
``tokenizers`` 0.23 runs with its default syntax; sources are its doc/RE and ``regparse.c``. It differs from Python's
``re``: ``&&`` intersects sets, sets nest, ``\\h`` is a hexadecimal digit, ``(?m)`` lets a dot match newlines, ``^`` and
``$`` match at lines, ``a{1,2}+`` repeats, and ``a{2,1}`` is possessive. A construct that is not implemented raises a
:class:`PatternError` that names it. So no construct gets a meaning other than Oniguruma's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from pellucid.errors import shown
from pellucid.tokenize import unicode
from pellucid.tokenize.patterns import oniguruma_rules as rules
from pellucid.tokenize.patterns import tree as nodes
from pellucid.tokenize.patterns.oniguruma_sets import ANY, ASCII, PatternError, Scanner, checked
from pellucid.tokenize.unicode import complement, intersection

__all__ = ["PatternError", "parse"]

# Limits of a pattern. Published patterns have less than a tenth of these numbers.
MAX_CHARACTERS, MAX_ATOMS = 10_000, 2_000
# Maximum nesting depth of groups, and maximum depth of a syntax tree.
MAX_GROUPS, MAX_DEPTH = 50, 100
# Maximum number of nodes of a tree with its repeats expanded, because the matchers expand some repeats.
MAX_NODES = 300_000
# Oniguruma's own limit of group numbers in back references.
MAX_REFERENCE = 1000
NO_NEWLINE = complement(nodes.NEWLINE)
REFUSED = {
    "K": "\\K (keep)", "X": "\\X (a cluster)", "y": "\\y (a border of clusters)", "Y": "\\Y (no border of clusters)",
}  # fmt: skip


@lru_cache(maxsize=64)  # the matcher and the automaton of a pattern share the tree
def parse(pattern: str) -> nodes.Node:
    """The tree of a pattern.

    Raises PatternError: Oniguruma refuses the pattern, or it has a construct that is not implemented.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise PatternError(f"it has {len(pattern):,} characters; {MAX_CHARACTERS:,} are allowed")
    parser = _Parser(pattern)
    node = parser.pattern()
    if nodes.depth(node) > MAX_DEPTH:
        raise PatternError(f"it is nested more than {MAX_DEPTH} deep")
    tree: nodes.Node = rules.without_groups(rules.without_case(node, single=False), parser.groups())
    if rules.looks_anchored(tree):
        raise PatternError("an anchor or a look-around before \\O+ at the beginning of the pattern is not implemented")
    if nodes.size(tree) > MAX_NODES:
        raise PatternError(f"it has more than {MAX_NODES:,} nodes with its repeats expanded")
    return tree


class _Parser(Scanner):
    """Parses groups, alternatives and repeats."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self._depth = self._atoms = 0
        self._names: list[str | None] = []  # names of the groups, in order
        self._numbers: list[int] = []  # groups that are referenced by number
        self._ends_here = False  # the last atom includes the rest of its group

    def pattern(self) -> Any:
        node = self._either()
        if self.at < len(self.text):
            raise PatternError("a parenthesis is closed that was not opened")
        return node

    def groups(self) -> set[int]:
        named = {at + 1 for at, name in enumerate(self._names) if name is not None}
        if named and self._numbers:
            raise PatternError("a back reference has a number, but the pattern has named groups")
        if any(number > len(self._names) for number in self._numbers):
            raise PatternError(f"there is no group {max(self._numbers)}")
        return named or {at + 1 for at in range(len(self._names))}

    def _either(self) -> Any:
        branches = [self._chain()]
        while self.take("|"):
            branches.append(self._chain())
        return branches[0] if len(branches) == 1 else nodes.Either(tuple(branches))

    def _chain(self) -> Any:
        parts: list[Any] = []
        while True:
            self._skip()
            if not self.codes and (self.at >= len(self.text) or self.peek("|") or self.peek(")")):
                break
            self._ends_here = False
            node = self._atom()
            if self._ends_here:  # "(?i)", whose node includes the rest of the group
                parts.append(node)
                break
            parts.append(self._repeated(node))
        return parts[0] if len(parts) == 1 else nodes.Concat(tuple(parts))

    def _skip(self) -> None:
        """Skip comments, and white space in extended mode."""
        while True:
            if self.take("(?#"):
                while (letter := self.next("a comment")) != ")":
                    self.at += letter == "\\"
            elif self.options.extended and self.peek("#"):
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end + 1
            elif self.options.extended and self.text[self.at : self.at + 1] in (" ", "\t", "\n", "\r", "\f"):
                self.at += 1
            else:
                return

    def _count(self, atoms: int = 1) -> None:
        self._atoms += atoms
        if self._atoms > MAX_ATOMS:
            raise PatternError(f"it has more than {MAX_ATOMS:,} characters, sets and groups")

    def _atom(self) -> Any:
        self._count()
        if self.codes:
            return self._letter(self.codes.pop(0) or 0)
        letter = self.next()
        if letter == "(":
            return self._group()
        if letter == "[":
            node = self.bracket()
            self._count(len(node.branches) if isinstance(node, nodes.Either) else 0)
            return node
        if letter == "\\":
            return self._escape()
        if letter == ".":
            return nodes.Set(ANY if self.options.dot_all else NO_NEWLINE)
        if letter in "^$":
            return nodes.Edge("line start" if letter == "^" else "line end")
        if letter in "*+?":
            raise PatternError(f"there is nothing to repeat before {letter!r}")
        if letter == "{":
            self.at -= 1
            if self._interval() is not None:
                raise PatternError("there is nothing to repeat before '{'")
            self.at += 1
        return self._letter(ord(letter))

    def _letter(self, code: int) -> Any:
        checked(code)
        return nodes.Letter(code) if self.options.any_case else nodes.Set(((code, code),))

    def _escape(self) -> Any:
        letter = self.next()
        if letter in "wWbB":
            return self._word(letter)
        edges: dict[str, Any] = {
            "A": "text start", "z": "text end", "Z": "last line end", "G": "search start",
        }  # fmt: skip
        if letter in edges:
            return nodes.Edge(edges[letter])
        if letter in "NO":
            return nodes.Set(ANY if letter == "O" else NO_NEWLINE)
        if letter == "R":
            pair = nodes.Concat((nodes.Set(((13, 13),)), nodes.Set(nodes.NEWLINE)))
            return nodes.Atomic(nodes.Either((pair, nodes.Set(((10, 13), (0x85, 0x85), (0x2028, 0x2029))))))
        if letter in REFUSED:
            raise PatternError(f"{REFUSED[letter]} is not implemented")
        if letter in "gk" and (self.peek("<") or self.peek("'")):
            if letter == "g":
                raise PatternError("\\g (a group as a subroutine) is not implemented")
            return self._named_back()
        if letter in "123456789" and (number := self._back_number()) is not None:
            return self._back(number)
        members = self.escaped_set(letter)
        return self._letter(self.escaped_code(letter)) if members is None else nodes.Set(members)

    def _word(self, letter: str) -> nodes.Node:
        members = unicode.members("text.word") or ()
        if self.options.is_ascii("word"):
            members = intersection(members, ASCII)
        if letter in "bB":
            return nodes.Edge("border" if letter == "b" else "no border", members)
        return nodes.Set(complement(members) if letter == "W" else members)

    # ------------------------------------------------------------ references

    def _back_number(self) -> int | None:
        """The group number after a backslash; None if it is an octal character or a digit."""
        start = self.at - 1
        self.digits("0123456789", len(self.text))
        digits = self.text[start : self.at]
        number = int(digits) if len(digits) <= 4 else MAX_REFERENCE + 1
        if number <= MAX_REFERENCE and (number <= 9 or number <= len(self._names)):
            return number
        self.at = start + 1
        return None

    def _named_back(self) -> Any:
        name = self.until(">" if self.next() == "<" else "'")
        if not name:
            raise PatternError("\\k without a name")
        if name.lstrip("+-").isdecimal() and name.isascii():
            number = int(name) if len(name) <= 4 else MAX_REFERENCE + 1
            count = len(self._names)
            number = number if name[0] not in "+-" else count + 1 + number if number < 0 else count + number
            if not 0 < number <= MAX_REFERENCE:
                raise PatternError(f"\\k<{shown(name)}> names no group")
            return self._back(number)
        if name not in self._names:
            raise PatternError(f"\\k<{shown(name)}> names no earlier group, or has a level, which is not implemented")
        self._refuse_any_case()
        numbers = [at + 1 for at, known in enumerate(self._names) if known == name]
        self._count(len(numbers))
        backs = tuple(nodes.Back(number) for number in reversed(numbers))
        return backs[0] if len(backs) == 1 else nodes.Either(backs)

    def _back(self, number: int) -> nodes.Back:
        self._refuse_any_case()
        self._numbers.append(number)
        return nodes.Back(number)

    def _refuse_any_case(self) -> None:
        if self.options.any_case:
            raise PatternError("a case-insensitive back reference, under (?i), is not implemented")

    # ------------------------------------------------------------ groups

    def _group(self) -> Any:
        self._depth += 1
        if self._depth > MAX_GROUPS:
            raise PatternError(f"groups are nested more than {MAX_GROUPS} deep")
        before = self.options
        node = self._inside()
        self.options = before
        self._depth -= 1
        return node

    def _inside(self) -> Any:
        """A group after its opening parenthesis, up to and including the closing one."""
        looks = {"?=": (True, False), "?!": (True, True), "?<=": (False, False), "?<!": (False, True)}
        for mark, (ahead, negative) in looks.items():
            if self.take(mark):
                return self._look(ahead, negative)
        if self.take("?:"):
            return self._closed()
        if self.take("?>"):
            return nodes.Atomic(self._closed())
        if self.take("?<") or self.take("?'"):
            return self._named_group()
        refused = {
            "*": "a callout (*", "?{": "a callout (?{", "?~": "an absent operator (?~", "?(": "a condition (?(",
        }  # fmt: skip
        for mark, what in refused.items():
            if self.peek(mark):
                raise PatternError(f"{what} is not implemented")
        if self.take("?"):
            return self._switched()
        self._names.append(None)
        return self._captured(len(self._names))

    def _captured(self, number: int) -> Any:
        return nodes.Group(self._closed(), number)

    def _closed(self) -> Any:
        node = self._either()
        if not self.take(")"):
            raise PatternError("a parenthesis is not closed")
        self._ends_here = False
        return node

    def _look(self, ahead: bool, negative: bool) -> nodes.Look:
        node = self._closed()
        # Oniguruma ignores a look-behind that may be empty, including any border in it.
        if not ahead and (
            nodes.may_be_empty(node) or any(rules.refused_in_look_behind(part, negative) for part in nodes.walk(node))
        ):
            raise PatternError("the contents of this look-behind are not implemented")
        return nodes.Look(node, ahead, negative)

    def _named_group(self) -> Any:
        name = self.until(">" if self.text[self.at - 1] == "<" else "'") or ""
        if not name.isidentifier():
            raise PatternError(f"{shown(name)!r} is not a name of a group")
        self._names.append(name)
        return self._captured(len(self._names))

    def _switched(self) -> Any:
        """``(?i:...)``, or ``(?i)``, which applies to the rest of its group."""
        on, options = True, self.options
        if self.peek(")"):
            raise PatternError("(?) switches nothing")
        while True:
            letter = self.next("a group")
            names = {"W": "word", "D": "digit", "S": "space", "P": "posix"}
            flags = {"i": "any_case", "m": "dot_all", "x": "extended"}
            if letter == "-":
                on = False
            elif letter in flags:
                options = replace(options, **{flags[letter]: on})
            elif letter in names:
                options = replace(
                    options, ascii=options.ascii | {names[letter]} if on else options.ascii - {names[letter]}
                )
            elif letter in ":)":
                break
            else:
                raise PatternError(f"(?{shown(letter)} is not known, or not implemented")
        self.options = options
        if letter == ":":
            return nodes.Concat((self._closed(),))  # unlike (?:...), it may be repeated with any contents
        node = self._either()
        self._ends_here = True
        return node

    # ------------------------------------------------------------ repeats

    def _repeated(self, node: Any) -> Any:
        for _ in range(MAX_DEPTH):
            self._skip()
            quantifier = None if self.codes else self._times()
            if quantifier is None:
                return node
            if rules.cannot_repeat(node):
                raise PatternError("an anchor or a look-around cannot be repeated")
            least, most, greedy, possessive = quantifier
            if (least, most) != (1, 1):
                node = rules.nested(node, nodes.Repeat(node, least, most, greedy))
            if possessive:
                node = nodes.Atomic(node)
        raise PatternError(f"repeats are nested {MAX_DEPTH} deep")

    def _times(self) -> tuple[int, int | None, bool, bool] | None:
        """The quantifier that comes next: least, most, greedy, possessive; None if there is none."""
        for mark, (least, most) in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self.take(mark):
                greedy = not self.take("?")
                return least, most, greedy, greedy and self.take("+")
        interval = self._interval() if self.peek("{") else None
        if interval is None:
            return None
        low, high, exact = interval
        if high is not None and low > high:
            return high, low, True, True
        return low, high, exact or not self.take("?"), False

    def _interval(self) -> tuple[int, int | None, bool] | None:
        """``{2,3}`` as least, most, and True if exact (``{2}``); None without reading if the brace is literal."""
        start = self.at
        self.at += 1
        low = self.digits("0123456789", len(self.text))
        comma = self.take(",")
        high = self.digits("0123456789", len(self.text)) if comma else low
        if any(len(number.lstrip("0")) > 6 or int(number or 0) > rules.MAX_TIMES for number in (low, high)):
            raise PatternError(f"a repeat of more than {rules.MAX_TIMES:,} times")
        if not self.take("}") or not (low or (comma and high)):
            self.at = start
            return None
        return int(low or 0), int(high) if high else None, not comma
