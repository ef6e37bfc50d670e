"""The tokens of an encoded text, stored as columns.

A long text has hundreds of thousands of tokens, and most callers read only a few of them. A ``Token`` is created only
when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple


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
