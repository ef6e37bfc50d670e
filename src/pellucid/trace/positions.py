"""The positions that a selection names: "tokens=5", "2:9", "0,4,7:", "-1", "generated", '" cat"'.

    5, 2:9, 5:, ::2    positions from the start of the text; a range without an end includes generated tokens
    -1, -3:, :-1       positions from the end of the prompt: -1 is the prompt's last token
    prompt, generated  the tokens of the prompt; the tokens after them, each when the model reads it
    " cat"             the tokens of each occurrence of a text in the prompt, in quotes

A list of them, with commas, selects in the written order. Each position may occur once. A range beyond the end is
clipped, as in NumPy.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief

ENDLESS, MOST_PARTS = 1 << 31, 64
RANGE = re.compile(r"(-?\d{1,10})?(?:(:)(-?\d{1,10})?(?::(\d{0,10}))?)?")


class TokenTexts(NamedTuple):
    """The tokens that relative positions refer to, and the function that returns the text of a token."""

    ids: Sequence[int]
    piece: Callable[[int], str]


class RelativeRange(Struct, frozen=True):
    """A range whose ends count from the prompt's end if they are ``relative``. ``stop`` None: without an end."""

    start: int
    stop: int | None
    step: int
    relative: tuple[bool, bool]

    def resolve(self, what: str, count: int) -> range:
        """The range in a sequence whose prompt has ``count`` tokens. An error is about ``what``."""
        start = max(0, self.start + count * self.relative[0])
        stop = ENDLESS if self.stop is None else self.stop + count * self.relative[1]
        if stop <= start:
            raise InvalidRequest(f"{what}: the prompt has {count:,} tokens: select positions in it")
        return range(start, stop, self.step)


WORDS = {"prompt": RelativeRange(0, 0, 1, (False, True)), "generated": RelativeRange(0, None, 1, (True, False))}
"""Words for the tokens before the prompt's end and after it."""


class Positions(Struct, frozen=True):
    """Positions. A part is a range, or depends on the prompt: a relative range, or a text.

    The parts have the written order, and so have the rows of recorded values and of an edit's values (``listed``,
    ``row_of``). A step reads positions in ascending order (``within``, ``runs``). Until ``resolve`` has found the parts
    that depend on the prompt, ``ranges`` are all positions. ``text`` is what the user wrote.
    """

    parts: tuple[range | RelativeRange | str, ...]
    text: str = ""

    @property
    def is_relative(self) -> bool:
        """True if the positions depend on the prompt."""
        return not all(isinstance(part, range) for part in self.parts)

    @property
    def ranges(self) -> tuple[range, ...]:
        """The ranges of positions, in the written order."""
        own = tuple(part for part in self.parts if isinstance(part, range))
        return own if len(own) == len(self.parts) else (range(ENDLESS),)

    @property
    def is_open(self) -> bool:
        """True if a range has no end, so that the number of positions depends on the text."""
        return any(own.stop >= ENDLESS for own in self.ranges)

    @property
    def start(self) -> int:
        """The lowest position."""
        return min(own.start for own in self.ranges)

    @property
    def stop(self) -> int:
        """The position after the highest position."""
        return max(own[-1] for own in self.ranges) + 1

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __contains__(self, position: object) -> bool:
        return any(position in own for own in self.ranges)

    def first(self, count: int) -> Positions:
        """The ``count`` lowest positions, in the written order."""
        if len(self.ranges) == 1:
            return Positions((self.ranges[0][:count],))
        low, high = self.start, self.stop
        while low < high:  # the smallest number of tokens with ``count`` of the positions
            middle = (low + high) // 2
            low, high = (low, middle) if self.rows_before(middle) >= count else (middle + 1, high)
        clipped = (_clipped(own, own.start, low) for own in self.ranges)
        return Positions(tuple(own for own in clipped if len(own)))

    def rows_before(self, position: int) -> int:
        """The number of positions before ``position``."""
        return sum(len(_clipped(own, own.start, position)) for own in self.ranges)

    def row_of(self, position: int, count: int = ENDLESS) -> int:
        """The row of a selected position in the values of a text of ``count`` tokens."""
        rows = 0
        for own in self.ranges:
            if position in own:
                return rows + own.index(position)
            rows += len(_clipped(own, own.start, count))
        raise ValueError(f"position={position}: is not selected")

    def listed(self, count: int) -> NDArray[np.int64]:
        """The positions of a text of ``count`` tokens in the written order: the position of each row."""
        parts = [_clipped(own, own.start, count) for own in self.ranges]
        return np.concatenate([np.arange(part.start, part.stop, part.step, dtype=np.int64) for part in parts])

    def within(self, start: int, stop: int) -> NDArray[np.int64]:
        """The positions from ``start`` to ``stop`` - 1, ascending."""
        parts = [_clipped(own, start, stop) for own in self.ranges]
        found = [np.arange(part.start, part.stop, part.step, dtype=np.int64) for part in parts]
        return found[0] if len(found) == 1 else np.sort(np.concatenate(found))

    def next(self, start: int) -> NDArray[np.int64]:
        """The first position from ``start`` on: an array with at most one position."""
        parts = [part.start for own in self.ranges if len(part := _clipped(own, start, own.stop))]
        return np.array([min(parts)] if parts else [], np.int64)

    def runs(self, start: int, stop: int) -> Iterator[range]:
        """Yield the positions from ``start`` to ``stop`` - 1 as runs of consecutive positions, ascending.

        The rows of a run are consecutive, too.
        """
        runs = list[range]()
        for own in self.ranges:
            part = _clipped(own, start, stop)
            if part.step == 1:
                runs += [part] if len(part) else []
            else:
                runs += (range(position, position + 1) for position in part)
        yield from sorted(runs, key=lambda run: run.start)

    def resolve(self, prompt: TokenTexts, key: str = "tokens") -> Positions:
        """These positions in a sequence with this prompt, which errors call ``key``.

        Raises:
            InvalidRequest: the prompt does not have a position or a text, or a position is selected twice.
        """
        if not self.is_relative:
            return self
        ranges, what = list[range](), f"{key}={self.text}"
        for part in self.parts:
            if isinstance(part, RelativeRange):
                ranges.append(part.resolve(what, len(prompt.ids)))
            else:
                ranges += _occurrences(key, part, prompt) if isinstance(part, str) else [part]
        refuse_twice(what, ranges)
        return Positions(tuple(ranges), self.text)


EVERY = Positions((range(ENDLESS),))
"""All positions."""


def parse(where: str, key: str, value: str) -> Positions:
    """Read the positions that ``value`` lists for ``key`` in the selection ``where``.

    Raises:
        InvalidRequest: ``value`` is not a list of positions, or has a position twice.
    """
    texts = unquoted(value, ",")
    if len(texts) > MOST_PARTS:
        raise InvalidRequest(f"point={brief(where)}: {len(texts)} ranges; the limit is {MOST_PARTS}")
    parts = tuple(_part(where, key, text.strip()) for text in texts)
    refuse_twice(f"point={brief(where)}: {key}={brief(value)}", [part for part in parts if isinstance(part, range)])
    return Positions(parts, brief(value))


def unquoted(text: str, separators: str) -> list[str]:
    """Split a text at the separators that are not in quotes."""
    parts, quote = [""], ""
    for at, character in enumerate(text):
        if character in "\"'" and (not quote or quote == character) and text[at - 1 : at] != "\\":
            quote = "" if quote else character
        if character in separators and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _part(where: str, key: str, text: str) -> range | RelativeRange | str:
    if text[:1] in ("'", '"'):
        return _quoted(where, key, text)
    if text in WORDS:
        return WORDS[text]
    match = RANGE.fullmatch(text)
    if not match or not text:
        raise InvalidRequest(
            f"point={brief(where)}: {key}={brief(text)}: must be a position such as 5 or -1, a range such as 2:9, "
            'prompt, generated, or a text in quotes such as " cat"'
        )
    first, colon, last, step = match.groups()
    start, each = int(first or 0), int(step or 1)
    if not colon:
        stop, relative = start + 1, (start < 0, start < 0)
    else:
        stop = ENDLESS if last is None else int(last)
        relative = start < 0, last is not None and stop < 0
    if any(relative):
        return RelativeRange(start, None if stop == ENDLESS else stop, max(each, 1), relative)
    own = range(start, min(stop, ENDLESS), each) if each else range(0)
    if not len(own):
        raise InvalidRequest(f"point={brief(where)}: {key}={brief(text)}: the range is empty")
    return own


def _quoted(where: str, key: str, text: str) -> str:
    inside = text[1:-1] if len(text) > 2 and text[-1] == text[0] else ""
    try:
        found = json.loads('"' + inside.replace('"', '\\"') + '"') if text[0] == "'" else json.loads(text)
    except ValueError:
        found = ""
    if not inside or not found:
        raise InvalidRequest(f"point={brief(where)}: {key}={brief(text)}: the text in quotes is empty or not closed")
    return str(found)


def _occurrences(key: str, text: str, prompt: TokenTexts) -> list[range]:
    """The tokens of each occurrence of a text in the prompt."""
    pieces = [prompt.piece(token) for token in prompt.ids]
    ends = np.cumsum([len(piece) for piece in pieces])
    whole, found, at = "".join(pieces), list[range](), -1
    while (at := whole.find(text, at + 1)) >= 0:
        first, last = (int(np.searchsorted(ends, place, "right")) for place in (at, at + len(text) - 1))
        if not found or found[-1].stop <= first:
            found.append(range(first, last + 1))
    if not found:
        raise InvalidRequest(f"{key}={brief(text)}: this text does not occur in the prompt")
    return found


def refuse_twice(what: str, ranges: Iterable[range]) -> None:
    """Raise InvalidRequest about ``what`` if two ranges share a number."""
    ordered = sorted(ranges, key=lambda own: own.start)
    for number, own in enumerate(ordered):
        for other in itertools.islice(ordered, number + 1, None):
            if other.start >= own.stop:
                break
            if (twice := _shared(own, other)) is not None:
                raise InvalidRequest(f"{what} has {twice:,} twice: name each number once")


def _shared(a: range, b: range) -> int | None:
    """The first number that two ascending ranges share (Chinese remainder theorem)."""
    divisor = math.gcd(a.step, b.step)
    turns, rest = divmod(b.start - a.start, divisor)
    if rest:
        return None
    period = b.step // divisor
    found = a.start + turns * pow(a.step // divisor, -1, period) % period * a.step
    first = _clipped(range(found, min(a.stop, b.stop), a.step * period), b.start, ENDLESS)
    return first.start if len(first) else None


def _clipped(own: range, start: int, stop: int) -> range:
    """The positions of a range from ``start`` to ``stop`` - 1."""
    skipped = max(0, -((own.start - start) // own.step))
    first = own.start + skipped * own.step
    return range(first, max(first, min(stop, own.stop)), own.step)
