"""An encoded text: ids with offsets and attributes, stored as columns; truncation and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pellucid.errors import InvalidRequest, brief

# The tokens of an encoded text, stored as columns. A long text has hundreds of thousands of tokens, and most callers
# read only a few of them. A ``Token`` is created only when it is read.


class Token(NamedTuple):
    """One id of an encoded text.

    ``start`` and ``end`` are character offsets in the text. Both are 0 for tokens that are added around the text.
    ``type_id`` is the token type for models that distinguish the texts of a pair. ``sequence`` is 0 for the first text,
    1 for the second text, and None for tokens of neither text. ``special`` is True if the post-processor added the
    token, ``padding`` if the token is padding.
    """

    id: int
    text: str
    start: int = 0
    end: int = 0
    type_id: int = 0
    sequence: int | None = None
    special: bool = False
    padding: bool = False


PLACES = {name: place for place, name in enumerate(Token._fields)}
# Creates a token from a tuple of all fields, three times as fast as ``Token(...)``.
_new: Callable[[tuple[Any, ...]], Token] = partial(tuple.__new__, Token)


class TokenTable(Sequence[Token]):
    """Tokens whose fields are in ``columns``, (T,) each, in the order of ``Token``; equal to a list of the tokens."""

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        self._columns = columns

    @classmethod
    def of_text(
        cls, ids: Sequence[int], names: Sequence[str], starts: Sequence[int], ends: Sequence[int]
    ) -> TokenTable:
        """The tokens of a text, with type id 0, of sequence 0; ``names`` has the piece of every id."""
        count = len(ids)
        same: list[list[Any]] = [[value] * count for value in (0, 0, False, False)]
        return cls([ids, list(map(names.__getitem__, ids)), starts, ends, *same])

    @classmethod
    def joined(cls, parts: Iterable[Sequence[Token]]) -> TokenTable:
        """The concatenated tokens of all parts."""
        columns: list[list[Any]] = [[] for _ in Token._fields]
        for part in parts:
            for column, more in zip(columns, part._columns if isinstance(part, TokenTable) else zip(*part)):
                column.extend(more)
        return cls(columns)

    def column(self, name: str) -> Sequence[Any]:
        """A field of all tokens, (T,)."""
        return self._columns[PLACES[name]]

    def changed(self, **columns: Sequence[Any]) -> TokenTable:
        """A copy with other values in some columns."""
        changed = list(self._columns)
        for name, values in columns.items():
            changed[PLACES[name]] = values
        return TokenTable(changed)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __iter__(self) -> Iterator[Token]:
        return map(_new, zip(*self._columns))

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return TokenTable([column[index] for column in self._columns])
        return _new(tuple(column[index] for column in self._columns))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(list(self))


# An encoded text: ids with offsets and attributes; truncation and padding. The rules follow Hugging Face
# ``tokenizers``: ``Encoding``, ``utils/truncation.rs`` and ``utils/padding.rs``.

Span = tuple[int, int, int]
"""An id, and the start and end of the characters that it covers in a pre-token; the end is excluded."""

Columns = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Ids, starts and ends: the characters of the text that each id covers; the end is excluded."""

Side = Literal["left", "right"]


class Sliceable(Protocol):
    """Tokens that truncation can cut: a list or an array of ids, or a token table."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Any: ...


SliceableT = TypeVar("SliceableT", bound=Sliceable)


@dataclass(frozen=True)
class Encoding(Sequence[Token]):
    """The tokens of a text or of a pair of texts; ``overflowing`` holds the further windows of a truncated text.

    ``windows`` are all windows: the encoding itself and ``overflowing``. Together they cover the text.
    """

    tokens: TokenTable
    overflowing: tuple[Encoding, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.tokens[index]

    @property
    def windows(self) -> tuple[Encoding, ...]:
        """The encoding itself, then ``overflowing``."""
        return (self, *self.overflowing)

    @property
    def ids(self) -> list[int]:
        """The ids, (T,)."""
        return list(self.tokens.column("id"))

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The start and end of each id in characters of its own text, (T,); the end is excluded."""
        return list(zip(self.tokens.column("start"), self.tokens.column("end")))

    @property
    def type_ids(self) -> list[int]:
        """The token type of each id, (T,): ``token_type_ids`` in transformers."""
        return list(self.tokens.column("type_id"))

    @property
    def sequence_ids(self) -> list[int | None]:
        """The text of each id, (T,): 0 for the first, 1 for the second, None for added tokens and padding."""
        return list(self.tokens.column("sequence"))

    @property
    def attention_mask(self) -> list[int]:
        """1 for each token, 0 for padding, (T,)."""
        return [int(not padding) for padding in self.tokens.column("padding")]


@dataclass(frozen=True)
class Truncation:
    """Truncation to ``max_length`` ids. The special tokens around the text count, and stay.

    ``strategy`` selects the text of a pair that is cut: "longest_first", "only_first" or "only_second". ``side`` is the
    end that is cut off. The rest of the text forms further windows, which overlap by ``stride`` ids.
    """

    max_length: int
    stride: int = 0
    strategy: Literal["longest_first", "only_first", "only_second"] = "longest_first"
    side: Side = "right"

    def __post_init__(self) -> None:
        _choice("truncation strategy", self.strategy, ("longest_first", "only_first", "only_second"))
        _choice("truncation side", self.side, ("left", "right"))
        for name in ("max_length", "stride"):
            if getattr(self, name) < 0:
                raise InvalidRequest(f"truncation {name} is {getattr(self, name)}; it must be 0 or more")

    def windows(
        self, first: SliceableT, second: SliceableT | None, added: int
    ) -> tuple[list[SliceableT], list[SliceableT] | None]:
        """The windows of each text, shorter by ``added`` special tokens. The first window is the truncated text.

        Raises :class:`InvalidRequest` if the limit leaves no room for text.
        """
        limit = self.max_length - added
        if limit < 0:
            raise InvalidRequest(
                f"truncation max_length is {self.max_length}, but {added} special tokens are put around a text; "
                f"give {added} or more"
            )
        lengths = [len(first), 0 if second is None else len(second)]
        if sum(lengths) <= limit:
            return [first], None if second is None else [second]
        first_length, second_length = self._kept_lengths(lengths, limit, second is not None)
        others = None if second is None else self._cut(second, second_length)
        return self._cut(first, first_length), others

    def _kept_lengths(self, lengths: list[int], limit: int, pair: bool) -> list[int]:
        if limit == 0:
            return [0, 0]
        if self.strategy == "longest_first":
            if not pair:
                return [limit, 0]
            short, long = sorted(lengths)
            long = short if short > limit else max(short, limit - short)
            if short + long > limit:
                short, long = limit // 2, limit // 2 + limit % 2
            return [long, short] if lengths[0] > lengths[1] else [short, long]
        which = int(self.strategy == "only_second")
        if which and not pair:
            raise InvalidRequest("truncation strategy is 'only_second', but there is one text; give a pair")
        remaining = lengths[which] - (sum(lengths) - limit)
        if remaining <= 0:
            raise InvalidRequest(
                f"truncation to {self.max_length} would leave nothing of the text that {brief(self.strategy)} cuts: "
                "give a greater max_length, or strategy 'longest_first'"
            )
        return [remaining, lengths[1]] if which == 0 else [lengths[0], remaining]

    def _cut(self, tokens: SliceableT, length: int) -> list[SliceableT]:
        if length >= len(tokens):
            return [tokens]
        if length == 0:
            return [tokens[:0], tokens]
        if self.stride >= length:
            raise InvalidRequest(
                f"truncation stride is {self.stride}, but windows have {length} ids; the stride must be smaller"
            )
        step, count = length - self.stride, len(tokens)
        out: list[SliceableT] = []
        for at in range(0, count, step):
            start, stop = (at, at + length) if self.side == "right" else (max(count - at - length, 0), count - at)
            out.append(tokens[start:stop])
            if stop >= count if self.side == "right" else start == 0:
                break
        return out


@dataclass(frozen=True)
class Padding:
    """Padding to ``length`` ids (None: the longest of the batch), rounded up to a multiple of ``multiple_of``."""

    id: int
    token: str = "[PAD]"
    length: int | None = None
    multiple_of: int | None = None
    type_id: int = 0
    side: Side = "right"

    def __post_init__(self) -> None:
        _choice("padding side", self.side, ("left", "right"))

    def __call__(self, encodings: Sequence[Encoding]) -> list[Encoding]:
        """The padded encodings."""
        length = max(map(len, encodings), default=0) if self.length is None else self.length
        if self.multiple_of:
            length += -length % self.multiple_of
        return [self._fill(encoding, length) for encoding in encodings]

    def _fill(self, encoding: Encoding, length: int) -> Encoding:
        filler = (Token(self.id, self.token, type_id=self.type_id, special=True, padding=True),)
        added = filler * max(length - len(encoding), 0)
        parts = (added, encoding.tokens) if self.side == "left" else (encoding.tokens, added)
        return replace(
            encoding,
            tokens=TokenTable.joined(parts),
            overflowing=tuple(self._fill(window, length) for window in encoding.overflowing),
        )


def combined(
    first: Sequence[TokenTable], second: Sequence[TokenTable] | None
) -> list[tuple[TokenTable, TokenTable | None]]:
    """All combinations of the windows of two texts, the truncated texts first. For one text, its windows."""
    if second is None:
        return [(window, None) for window in first]
    combinations: list[tuple[TokenTable, TokenTable | None]]
    combinations = [(window, other) for window in islice(first, 1, None) for other in second]
    return [(first[0], second[0]), *combinations, *((first[0], other) for other in islice(second, 1, None))]


def _choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidRequest(f"{name} {brief(value)} is not known; known are {', '.join(known)}")
