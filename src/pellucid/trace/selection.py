"""Selections of points: "blocks.*.residual", "blocks.5.attention.pattern[heads=0,3; tokens=2:9]".

``*`` stands for a part of a name between two dots, ``**`` for any number of parts. A negative block number counts from
the last block. Names of TransformerLens select points, too (``trace/transformer_lens_names.py``). ``heads`` and
``dims`` (of each head, or of a vector) are lists of numbers and ranges: "3,0", "2:9", "5:", "::2". Negative numbers
count from the end, and ranges are clipped. ``tokens`` and ``keys`` list positions (``trace/positions.py``); patterns
and scores have ``keys``, the tokens that a token attends to. A part is NumPy indexing of the whole array: recorded
values have the order of the lists. Each number may occur once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import InvalidRequest, brief
from pellucid.model.shapes import ENCODER
from pellucid.plan.points import Point
from pellucid.trace.positions import EVERY, RANGE, Positions, TokenTexts, parse, unquoted
from pellucid.trace.transformer_lens_names import MARK, hooks_of, why_absent

MOST_NAME, MOST_RANGES = 1000, 64
KEYS = ("heads", "dims", "tokens", "keys")


class Selection(Struct, frozen=True):
    """A part of a point: some ``heads`` and ``dims`` (None: all dims), at the positions ``tokens``.

    Heads and dims have the order of the selection's text. Of patterns and scores, only some ``keys`` are selected
    (None: all keys).
    """

    point: Point
    heads: tuple[int, ...]
    dims: tuple[int, ...] | None
    tokens: Positions
    keys: Positions | None = None

    @property
    def is_relative(self) -> bool:
        """True if the positions depend on the prompt."""
        return self.tokens.is_relative or (self.keys is not None and self.keys.is_relative)

    def resolve(self, prompt: TokenTexts, source: TokenTexts | None) -> Selection:
        """The selection in a sequence with this ``prompt``; keys of cross attention are tokens of the ``source``.

        Raises: as ``Positions.resolve``.
        """
        if not self.is_relative:
            return self
        of_keys = source if source and self.point.mask and self.point.mask.cross else prompt
        where = f"point={brief(self.name)}: "
        keys = None if self.keys is None else self.keys.resolve(of_keys, f"{where}keys")
        tokens = self.tokens.resolve(prompt, f"{where}tokens")
        resolved: Selection = replace(self, tokens=tokens, keys=keys)
        return resolved

    @property
    def name(self) -> str:
        """The point's name."""
        return self.point.name

    @property
    def has_all_heads(self) -> bool:
        """True if the selection has all heads of the point, in the point's order."""
        return self.heads == tuple(range(self.point.view.parts))

    def shape(self, tokens: int, source: int = 0) -> tuple[int, ...]:
        """The shape of the values recorded of a text of ``tokens`` tokens: (T, ...), of a pattern (H, T, T').

        In an encoder-decoder, ``source`` is the number of tokens of the source. ``resolve`` has set the positions.
        """
        point, heads = self.point, len(self.heads)
        text = source if point.of_source else tokens
        rows = self.tokens.within(0, text)
        if point.mask is not None and point.kind in ("pattern", "scores"):
            keys = source if point.mask.cross else text
            return heads, len(rows), keys if self.keys is None else len(self.keys.within(0, keys))
        size = point.view.count if self.dims is None else len(self.dims)
        count = 1 if point.rows == "sequences" else len(rows)
        return (count, heads, size) if point.heads else (count, size)

    def runs(self) -> list[tuple[int, int]]:
        """The selected heads as runs of consecutive heads: (first head, number of heads)."""
        return runs_of(self.heads)


def runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as runs of consecutive numbers: (first number, count)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def select(points: Mapping[str, Point], texts: Sequence[str]) -> list[Selection]:
    """Return the parts of points that the texts select, for each text in the order of the pipeline.

    Raises:
        InvalidRequest: a text selects nothing, or a part that its point does not have.
    """
    return [part for text in texts for part in _selected(points, text)]


def by_name(selected: Iterable[Selection]) -> dict[str, Selection]:
    """Return selections by the name of their point.

    Raises:
        InvalidRequest: two different parts of a point are selected.
    """
    parts: dict[str, Selection] = {}
    for part in selected:
        if parts.setdefault(part.name, part) != part:
            raise InvalidRequest(
                f"point={brief(part.name)}: two parts of this point are selected: select one part that has both"
            )
    return parts


def _selected(points: Mapping[str, Point], text: str) -> Iterator[Selection]:
    if not isinstance(text, str) or not text or len(text) > MOST_NAME:
        raise InvalidRequest(f"point={brief(text)}: must be a name, such as blocks.*.residual")
    name, bracket, rest = text.partition("[")
    if bracket and not rest.endswith("]"):
        raise InvalidRequest(f"point={brief(text)}: the bracket is not closed")
    values = _given(text, rest[:-1]) if bracket else {}
    matching = _matching(points, name)
    if not matching:
        reason = why_absent(name) or _nearest(points, name)
        raise InvalidRequest(f"point={brief(name)}: no point has this name{reason}")
    for point in matching:
        if "heads" in values and not point.heads:
            raise InvalidRequest(f"point={brief(text)}: {point.name} has no heads: leave them out")
        if values and (point.kind == "output" or (point.kind == "state" and set(values) != {"tokens"})):
            raise InvalidRequest(f"point={brief(text)}: {point.name} has no parts: leave the bracket out")
        heads = _numbers(text, "heads", values.get("heads"), point.view.parts)
        dims = None
        if "dims" in values:
            if point.kind not in ("value", "probabilities"):
                raise InvalidRequest(f"point={brief(text)}: {point.name} has no dims: its rows are tokens")
            dims = _numbers(text, "dims", values["dims"], point.view.count)
        if "tokens" in values and point.rows == "sequences":
            raise InvalidRequest(f"point={brief(text)}: {point.name} has one value for each text: leave the tokens out")
        tokens = parse(text, "tokens", values["tokens"]) if "tokens" in values else EVERY
        keys = parse(text, "keys", values["keys"]) if "keys" in values else None
        if keys and point.kind not in ("pattern", "scores"):
            raise InvalidRequest(
                f"point={brief(text)}: {point.name} has no keys: select them of a pattern or of scores"
            )
        yield Selection(point, heads, dims, tokens, keys)


def _matching(points: Mapping[str, Point], name: str) -> list[Point]:
    """The points that have a name, or a name of TransformerLens, in the order of the pipeline."""
    parts = _parts_of(points, name)
    if (exact := points.get(".".join(parts))) is not None:
        return [exact]
    if MARK not in name:
        return [point for point in points.values() if _fits(parts, point.name.split("."))]
    hooked = {point for hook, point in hooks_of(points).items() if _fits(parts, hook.split("."))}
    return [point for point in points.values() if point.name in hooked]


def _parts_of(points: Mapping[str, Point], name: str) -> list[str]:
    """Split a name into its parts, and resolve a negative block number."""
    prefix = ENCODER if name.startswith(ENCODER) else ""
    parts = name.removeprefix(prefix).split(".")
    if parts[0] == "blocks" and len(parts) > 1 and re.fullmatch(r"-\d{1,9}", parts[1]):
        own = (point.removeprefix(prefix) for point in points if point.startswith(f"{prefix}blocks."))
        blocks = {int(point.split(".")[1]) for point in own}
        parts[1] = str(max(blocks, default=-1) + 1 + int(parts[1]))
    return [*prefix.split(".")[:-1], *parts]


def _fits(patterns: Sequence[str], parts: Sequence[str]) -> bool:
    """True if the parts of a name match the ``patterns``, where ``**`` matches any number of parts."""
    # The numbers of parts that the patterns up to this pattern can match.
    ends = {0}
    for pattern in patterns:
        if pattern == "**":
            ends = set(range(min(ends, default=len(parts) + 1), len(parts) + 1))
        else:
            ends = {end + 1 for end in ends if end < len(parts) and _fits_part(pattern, parts[end])}
    return len(parts) in ends


def _fits_part(pattern: str, part: str) -> bool:
    """True if a part matches the ``pattern``, where ``*`` matches any characters."""
    first, *others = pattern.split("*")
    if not others:
        return part == first
    *middle, last = others
    if not part.startswith(first) or not part.endswith(last) or len(part) < len(first) + len(last):
        return False
    position, end = len(first), len(part) - len(last)
    for piece in middle:
        position = part.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True


def _nearest(points: Mapping[str, Point], name: str) -> str:
    from difflib import get_close_matches  # slow to import, and only this error needs it

    near = get_close_matches(name, [*points, *hooks_of(points)], 3, 0.5)
    return f"; the nearest are {', '.join(near)}" if near else "; pellucid points lists all"


def _given(text: str, inside: str) -> dict[str, str]:
    """Read the names and values in a bracket, such as "heads=0,3". A value without a name belongs to the last name."""
    values: dict[str, str] = {}
    last = ""
    for part in unquoted(inside, ",;"):
        key, equals, value = part.strip().partition("=")
        if equals:
            last = key.strip()
            if last not in KEYS or last in values:
                raise InvalidRequest(
                    f"point={brief(text)}: {brief(last)} is not one of {', '.join(KEYS)}, or is given twice"
                )
            values[last] = value.strip()
        elif last:
            values[last] += f",{key}"
        else:
            raise InvalidRequest(f"point={brief(text)}: write [heads=0,3] or [tokens=2:9]")
    return values


def _numbers(text: str, key: str, value: str | None, size: int) -> tuple[int, ...]:
    """The numbers below ``size`` that a value lists, in the written order. Raises InvalidRequest."""
    if value is None:
        return tuple(range(size))
    numbers, parts = dict[int, None](), value.split(",")
    if len(parts) > MOST_RANGES:
        raise InvalidRequest(f"point={brief(text)}: {len(parts)} ranges; the limit is {MOST_RANGES}")
    for part in parts:
        span = _range(text, key, part, size)
        if not len(span):
            raise InvalidRequest(f"point={brief(text)}: {key}={brief(part)}: there are {size:,} {key}, numbered from 0")
        twice = next((number for number in span if number in numbers), None)
        if twice is not None:
            raise InvalidRequest(
                f"point={brief(text)}: {key}={brief(value)} has {twice:,} twice: name each number once"
            )
        numbers |= dict.fromkeys(span)
    return tuple(numbers)


def _range(text: str, key: str, part: str, size: int) -> range:
    """The numbers of a part, as in NumPy: negative numbers count from the end, and ranges are clipped."""
    match = RANGE.fullmatch(part.strip())
    if not match or not part.strip() or int(match[4] or 1) < 1:
        raise InvalidRequest(
            f"point={brief(text)}: {key}={brief(part)}: must be a number or a range, such as -1, 2:9 or ::2"
        )
    start, stop, step = (int(number) if number else None for number in (match[1], match[3], match[4]))
    if match[2]:
        return range(size)[start:stop:step]
    number = int(match[1]) % size if -size <= int(match[1]) < size else size
    return range(size)[number : number + 1]
