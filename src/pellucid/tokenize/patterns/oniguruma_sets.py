"""Characters in Oniguruma's syntax: escapes, properties, bracketed sets, and their case-insensitive forms.

See ``oniguruma.py``. The functions follow ``regparse.c`` of Oniguruma 6.9.10 and sections 2, 3 and 6 of its doc/RE.
"""

from __future__ import annotations

from functools import lru_cache
from string import hexdigits, octdigits
from typing import ClassVar

from msgspec import Struct

from pellucid.errors import shown
from pellucid.tokenize import unicode
from pellucid.tokenize.patterns.tree import Concat, Either, Node, Set
from pellucid.tokenize.unicode import CODES, Ranges, complement, intersection, union

ANY: Ranges = ((0, CODES - 1),)
ASCII: Ranges = ((0, 0x7F),)
POSIX = (
    *("alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper"),
    *("xdigit", "word", "ascii"),
)
CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7, "e": 27}


class PatternError(Exception):
    """The pattern is invalid, or has a construct that is not implemented. The message names the cause, in one line."""


class PatternOptions(Struct, frozen=True):
    """The options ``i``, ``m`` and ``x`` of ``(?...)``. ``ascii`` has the names of the options W, D, S and P."""

    any_case: bool = False
    dot_all: bool = False
    extended: bool = False
    ascii: frozenset[str] = frozenset()

    def is_ascii(self, name: str) -> bool:
        """True if the property ``name`` is limited to ASCII."""
        return name in self.ascii or (name in POSIX[:-1] and "posix" in self.ascii)


def literal(name: str) -> str:
    """The contents of a bracketed set with the characters of a property in ``unicode.txt``."""
    return "".join(f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in unicode.members(name) or ())


def quoted(text: str) -> str:
    """A pattern that matches a text literally."""
    return "".join(f"\\{c}" if c.isascii() and c.isprintable() and not c.isalnum() else c for c in text)


class Scanner:
    """A pattern with the read position; parses escapes and brackets."""

    TYPES: ClassVar = {"d": "digit", "s": "space", "h": "xdigit"}

    def __init__(self, pattern: str) -> None:
        self.text, self.at, self.options = pattern, 0, PatternOptions()
        self.codes: list[int | None] = []  # the rest of "\x{41 42-44}"; None: a dash
        self.in_set = False

    def peek(self, ahead: str) -> bool:
        """True if ``ahead`` comes next."""
        return self.text.startswith(ahead, self.at)

    def take(self, text: str) -> bool:
        """Read ``text`` and return True if it comes next; else return False."""
        if self.peek(text):
            self.at += len(text)
            return True
        return False

    def next(self, of: str = "the pattern") -> str:
        """Read the next character. Raises :class:`PatternError` at the end; the message says that ``of`` ends early."""
        if self.at >= len(self.text):
            raise PatternError(f"{of} ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def digits(self, allowed: str, limit: int) -> str:
        """Read at most ``limit`` digits that are in ``allowed``."""
        start = self.at
        while self.at < len(self.text) and self.at - start < limit and self.text[self.at] in allowed:
            self.at += 1
        return self.text[start : self.at]

    def until(self, close: str) -> str | None:
        """Read up to and including ``close`` and return the text before it. None if ``close`` is absent."""
        end = self.text.find(close, self.at)
        if end < 0:
            return None
        start, self.at = self.at, end + len(close)
        return self.text[start:end]

    # ------------------------------------------------------------ escapes

    def escaped_set(self, letter: str) -> Ranges | None:
        """The set of an escape, in brackets and outside, except ``\\w``; None if the escape is not a set."""
        if letter.lower() in self.TYPES:
            members = self.named(self.TYPES[letter.lower()])
            return complement(members) if letter.isupper() else members
        if letter not in "pP" or not self.take("{"):
            return None
        negative = (letter == "P") ^ self.take("^")
        name = self.until("}")
        if name is None or set(name) & set("(){|"):
            raise PatternError(f"\\{letter}{{ is not closed")
        members = self.named(name)
        return complement(members) if negative else members

    def named(self, name: str) -> Ranges:
        """The characters of a property. Raises :class:`PatternError` for an unknown name."""
        plain = unicode.plain_name(name)
        members = unicode.named(plain)
        if members is None:
            raise PatternError(f"the property {shown(name)!r} is not known")
        return intersection(members, ASCII) if self.options.is_ascii(plain.strip("[]")) else members

    def escaped_code(self, letter: str) -> int:
        """The code point of an escape; ``letter`` is the character after the backslash."""
        if letter == "u":
            digits = self.digits(hexdigits, 4)
            if len(digits) < 4:
                raise PatternError(f"\\u{shown(digits)} does not have four digits")
            return checked(int(digits, 16))
        if letter in "xo" and self.peek("{"):
            return self._braced(hexdigits if letter == "x" else octdigits)
        if letter == "x":
            return self._bytes(self._byte(letter))
        if letter in octdigits:
            self.at -= 1
            return self._bytes(self._byte("0"))
        if letter in "cCM":
            return self._control(letter)
        return CONTROLS.get(letter, ord(letter))

    def _braced(self, of: str) -> int:
        """The first code of ``{41}`` or ``{41 42}``, in brackets also ``{41-43}``. ``codes`` gets the other codes."""
        written = self.text[self.at : self.at + 20]
        inside = (self.until("}") or "")[1:]
        words = inside.replace("-", " - ").split() if self.in_set else inside.split()
        longest = 8 if of is hexdigits else 11
        fit = [word == "-" or (not set(word) - set(of) and len(word) <= longest) for word in words]
        if not words or words[0] == "-" or not all(fit):
            raise PatternError(f"{shown(written)!r} is not a code point in braces")
        codes = [None if word == "-" else int(word, 16 if of is hexdigits else 8) for word in words]
        self.codes = codes[1:] + self.codes
        return codes[0] or 0

    def _byte(self, kind: str) -> int:
        digits = self.digits(hexdigits, 2) if kind == "x" else self.digits(octdigits, 3)
        if not digits:
            raise PatternError("\\x without digits")
        value = int(digits, 16 if kind == "x" else 8)
        if value > 0xFF:
            raise PatternError(f"\\{digits} is not a byte")
        return value

    def _bytes(self, first: int) -> int:
        """The character whose UTF-8 begins with byte ``first``; reads its other bytes, which are also escapes."""
        data = bytearray([first])
        size = 1 if first < 0xC2 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
        while len(data) < size:
            if not self.take("\\") or not (self.peek("x") or (digit := self.text[self.at : self.at + 1])):
                break
            data.append(self._byte("x" if self.take("x") else digit))
        try:
            return ord(data.decode())
        except (UnicodeDecodeError, TypeError):
            raise PatternError(f"the bytes {data.hex()} are not a character in UTF-8") from None

    def _control(self, letter: str) -> int:
        """The code of ``\\cX``, ``\\C-X`` or ``\\M-X``, which may be nested."""
        if letter != "c" and not self.take("-"):
            raise PatternError(f"\\{letter} without a dash")
        following = self.next(f"\\{letter}")
        if letter != "M" and following == "?":
            return 0x7F
        code = ord(following)
        if following == "\\":
            inner = self.next(f"\\{letter}")
            code = self._control(inner) if inner in "cCM" else CONTROLS.get(inner, ord(inner))
        return code & 0xFF | 0x80 if letter == "M" else code & 0x9F

    # ------------------------------------------------------------ sets in brackets

    def bracket(self) -> Node:
        """A bracketed set, after its ``[``."""
        self.in_set = True
        members, negative = self._bracket(0)
        self.in_set = False
        if not self.options.any_case:
            return Set(complement(members) if negative else members)
        members, sequences = in_other_cases(members)
        members_set = Set(complement(members) if negative else members)
        return Either((members_set, *sequences)) if sequences and not negative else members_set

    def _bracket(self, depth: int) -> tuple[Ranges, bool]:
        """The members of a set, and True if it has a leading ``^``, which is not applied."""
        if depth > 100:
            raise PatternError("sets are nested more than 100 deep")
        negative, reader = self.take("^"), _Members()
        if self.peek("]") and not self._closes_later():
            raise PatternError("a set is empty")
        token = self._token(literal=self.peek("]"))
        while token != "close":
            if token == "range":
                token = reader.dash(self._token())
                continue
            if token == "open":
                members, inverted = self._bracket(depth + 1)
                if inverted and not complement(members):  # Oniguruma gives this another meaning
                    raise PatternError("a set in a set excludes every character, which is not implemented")
                reader.nested(complement(members) if inverted else members)
            elif token == "and":
                reader.intersect()
            elif isinstance(token, int):
                if reader.in_range and self.codes[:1] == [None]:
                    raise PatternError("a set has a range that ends with a range")
                reader.character(token)
            else:
                assert isinstance(token, tuple)
                reader.type(token)
            token = self._token()
        return reader.members(), negative

    def _closes_later(self) -> bool:
        """True if a second ``]`` follows the next ``]``. The next ``]`` is then a member of the set."""
        at = self.at + 1
        while at < len(self.text):
            if self.text[at] == "]":
                return True
            at += 2 if self.text[at] == "\\" else 1
        return False

    def _token(self, literal: bool = False) -> _Token:
        """The next token in brackets: a code point, a set, or "close", "open", "range" or "and"."""
        if self.codes:
            code = self.codes.pop(0)
            return "range" if code is None else checked(code, limit=0xFFFFFFFF)
        letter = self.next("a set")
        if literal or letter not in "]-[\\&":
            return ord(letter)
        if letter == "]":
            return "close"
        if letter == "-":
            return "range"
        if letter == "&":
            return "and" if self.take("&") else ord(letter)
        if letter == "[":
            return self._posix() or "open"
        escaped = self.next("a set")
        if escaped in "wW":
            members = self.named("[word]")
            return complement(members) if escaped == "W" else members
        members_or_none = self.escaped_set(escaped)
        if members_or_none is not None:
            return members_or_none
        return 8 if escaped == "b" else checked(self.escaped_code(escaped), limit=0xFFFFFFFF)

    def _posix(self) -> Ranges | None:
        """``[:alpha:]`` after its first bracket. If another set follows, read nothing and return None."""
        end = self.text.find(":]", self.at + 1)
        name = self.text[self.at + 1 : end] if end > 0 and self.peek(":") else ""
        if not name or not (name.removeprefix("^") or "a").isalpha():
            return None
        if name.removeprefix("^") not in POSIX:
            raise PatternError(f"[:{shown(name)}:] is not known")
        self.at = end + 2
        members = self.named(f"[{name.removeprefix('^')}]")
        return complement(members) if name.startswith("^") else members


_Token = int | Ranges | str


class _Members:
    """Collects the members of a set, with Oniguruma's rules for dashes."""

    def __init__(self) -> None:
        self._sets: list[Ranges] = []
        self._before: Ranges | None = None  # the set before the last "&&"
        self._state = "start"  # "value": after a member; "range": after its dash; "complete": after a range
        self._value: int | None = None  # the last member, if it may begin a range

    @property
    def in_range(self) -> bool:
        """True if the next member ends a range."""
        return self._state == "range"

    def character(self, code: int) -> None:
        if self.in_range:
            assert self._value is not None
            if self._value > code:
                raise PatternError(f"a set has a range that ends before it begins, {self._value:#x} to {code:#x}")
            self._sets.append(((self._value, min(code, CODES - 1)),))
            self._state, self._value = "complete", None
            return
        self._flush()
        self._state, self._value = "value", checked(code)

    def type(self, members: Ranges) -> None:
        if self.in_range:
            raise PatternError("a set has a range that ends with a class of characters")
        self._flush()
        self._sets.append(members)
        self._state, self._value = "value", None

    def nested(self, members: Ranges) -> None:
        self._flush()
        self._sets.append(members)
        self._state = "complete"

    def dash(self, following: _Token) -> _Token:
        """Process a dash before the token ``following``; returns the token to process next."""
        if self._state == "value" and following not in ("close", "and"):
            if self._value is None:
                raise PatternError("a set has a range that begins with a class of characters")
            self._state = "range"
        else:
            self.character(ord("-"))
        return following

    def intersect(self) -> None:
        self._before, self._state = self.members(), "start"
        self._sets = []

    def members(self) -> Ranges:
        self._flush()
        members = union(self._sets)
        return members if self._before is None else intersection(self._before, members)

    def _flush(self) -> None:
        """Add the pending member that did not begin a range."""
        if self._state == "value" and self._value is not None:
            self._sets.append(((self._value, self._value),))
        self._value = None


def checked(code: int, limit: int = CODES - 1) -> int:
    """Return the code point. Raises :class:`PatternError` if it is above ``limit`` or a surrogate."""
    if code > limit or 0xD800 <= code < 0xE000:
        raise PatternError(f"{code:#x} is not the code point of a character")
    return code


@lru_cache(maxsize=256)
def in_other_cases(members: Ranges) -> tuple[Ranges, tuple[Node, ...]]:
    """The case-insensitive form of a set, and the letter sequences that equal a member ("ss" for "ß")."""
    is_member = unicode.holding(members)
    foldings = [full for code, full in unicode.full_folds().items() if is_member(code)]
    chains = tuple(Concat(tuple(Set(unicode.same_case(code)) for code in full)) for full in foldings)
    return union([members, *(unicode.same_case(code) for code in unicode.cased() if is_member(code))]), chains
