"""The post-processor, the last stage of encoding: adds special tokens around the sequence.

In: the ids of one or two texts. Out: the ids in the form that the model was trained on, e.g. ``[CLS] A [SEP]`` or
``<bos> A``, and the type id of each id.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from msgspec import Struct

from pellucid.tokenize.encoding import Token, TokenTable
from pellucid.tokenize.stages.decode import byte_alphabet
from pellucid.tokenize.unicode import white_space

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

A, B = -1, -2
"""Placeholders in a template for the first and the second text."""


class Template(Struct, frozen=True):
    """The templates of one text (``single``) and of two texts (``pair``). Entries are (id or placeholder, type id)."""

    single: tuple[tuple[int, int], ...] = ((A, 0),)
    pair: tuple[tuple[int, int], ...] = ((A, 0), (B, 1))

    @classmethod
    def around(cls, before: Sequence[int], after: Sequence[int], between: Sequence[int] = ()) -> Template:
        """The template with the ids ``before`` and ``after`` each text.

        With ``between``, these ids and not ``before`` come before the second text, and both texts have type 0.
        """
        single = (*((i, 0) for i in before), (A, 0), *((i, 0) for i in after))
        if between:
            return cls(single, (*single, *((i, 0) for i in between), (B, 0), *((i, 0) for i in after)))
        second = (*((i, 1) for i in before), (B, 1), *((i, 1) for i in after))
        return cls(single, (*single, *second))

    @property
    def plain(self) -> Template:
        """The template without special tokens, with the same type ids."""
        single, pair = (tuple(item for item in items if item[0] < 0) for items in (self.single, self.pair))
        return Template(single, pair)

    def with_token(self, old: int, new: int) -> Template:
        """The template with another special token in place of ``old``."""
        single, pair = (
            tuple((new if item == old else item, type_id) for item, type_id in items)
            for items in (self.single, self.pair)
        )
        return Template(single, pair)

    def added(self, pair: bool) -> int:
        """The number of special tokens added to one text or to a pair."""
        return sum(item >= 0 for item, _ in (self.pair if pair else self.single))

    def type_ids(self, count: int) -> list[int]:
        """The type id of each of ``count`` ids of one text with the special tokens around it."""
        texts = len(self.single) - self.added(False)
        length = (count - self.added(False)) // texts if texts else 0
        out: list[int] = []
        for item, type_id in self.single:
            out.extend([type_id] * (length if item == A else 1))
        return out

    def ids(self, text: list[int]) -> list[int]:
        """The ids of one text with the special tokens around them."""
        out: list[int] = []
        for item, _ in self.single:
            out.extend(text if item == A else (item,))
        return out

    def pair_ids(self, first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
        """The ids of two texts with the special tokens between and around them, and the type id of each id."""
        ids, types = list[int](), list[int]()
        for item, type_id in self.pair:
            part = [item] if item >= 0 else first if item == A else second
            ids += part
            types += [type_id] * len(part)
        return ids, types

    def array(self, text: NDArray[np.int32]) -> NDArray[np.int32]:
        """``ids`` for an array, (T,)."""
        import numpy as np

        items = [item for item, _ in self.single]
        if items == [A]:
            return text
        parts = [text if item == A else np.array([item], np.int32) for item in items]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def tokens(self, first: TokenTable, second: TokenTable | None, names: Sequence[str]) -> TokenTable:
        """The tokens of one or two texts with the special tokens around them.

        The given tokens have type id 0 and sequence 0. ``names`` has the piece of every id.
        """
        parts = list[Sequence[Token]]()
        for item, type_id in self.single if second is None else self.pair:
            if item >= 0:
                parts.append([Token(item, names[item], type_id=type_id, special=True)])
            else:
                part = first if item == A else second
                assert part is not None
                count = len(part)
                parts.append(part.changed(type_id=[type_id] * count, sequence=[int(item == B)] * count))
        return TokenTable.joined(parts)


class Trim(Struct, frozen=True):
    """Trims the white space at a token's ends from its offsets.

    ``keeps_first`` keeps a single space before the first token, because a pre-tokenizer may have inserted it. The rules
    follow ``tokenizers``, ``processors/byte_level.rs``.
    """

    keeps_first: bool

    def __call__(self, tokens: TokenTable) -> TokenTable:
        space = _spaces()
        starts, ends = list(tokens.column("start")), list(tokens.column("end"))
        trims = dict[str, tuple[int, int]]()
        for at, text in enumerate(tokens.column("text")):
            trim = trims.get(text)
            if trim is None:
                trim = trims[text] = len(text) - len(text.lstrip(space)), len(text) - len(text.rstrip(space))
            if any(trim):
                starts[at], ends[at] = self._trimmed(at, starts[at], ends[at], *trim)
        return tokens.changed(start=starts, end=ends)

    def _trimmed(self, at: int, start: int, end: int, leading: int, trailing: int) -> tuple[int, int]:
        if leading:
            if self.keeps_first and leading == 1 and (at == 0 or start == 0):
                leading = 0
            start = min(start + leading, end)
        if trailing and end >= trailing:
            end = max(end - trailing, start)
        return start, end


@cache
def _spaces() -> str:
    """All white space, and the space in the byte alphabet."""
    return white_space() + next(letter for letter, byte in byte_alphabet().items() if byte == 0x20)
