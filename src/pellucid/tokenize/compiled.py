"""Encoding by compiled code: texts to ids, all stages of a tokenizer one after the other, without the GIL.

In: texts. Out: their ids. The stages are those of ``added.py``, ``normalize.py``, ``pretokenize.py`` and ``kinds/``,
which say the same in Python: what they give is what this gives, faster. A stage is a kernel and what it is told; it
takes pieces of texts and leaves others. Many texts lie behind one another and go through a stage together.

Nothing here is changed by a call but what a thread has to itself: room to work in, and a memory of what was met before.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels import (
    text_added,
    text_apart,
    text_merge,
    text_normalize,
    text_pieces,
    text_rewrite,
    text_split,
)
from pellucid.kernels.record import Record
from pellucid.runtime.call import Call
from pellucid.runtime.memory import Arena, address
from pellucid.tokenize import tables
from pellucid.tokenize.aligned import MORE
from pellucid.tokenize.automaton import Automaton
from pellucid.tokenize.charmap import CharacterMap
from pellucid.tokenize.forms import FormTable
from pellucid.tokenize.matcher import too_slow

T = TypeVar("T")

ENTRIES, LONG_ENTRIES = 1 << 19, 1 << 14  # of a thread's memories: 32 MB, and 4 MB, as far as they are used
MOST_BYTES = 1 << 28  # of the texts of a call, whose places are 31 bits, also when they have grown
KEPT_ROOM = 1 << 22  # bytes of text that a thread's room is kept for


class Room:
    """What one thread works in: texts, their pieces and ends, each twice: a stage reads one and writes the other."""

    def __init__(self) -> None:
        self.memory, self.memory_place = zeros(ENTRIES * text_pieces.ENTRY + text_pieces.PADDING)
        self.long_memory, self.long_place = zeros(LONG_ENTRIES * text_pieces.LONG_ENTRY)
        self.made = np.zeros(1, np.int64)
        self.made_place = address(self.made)
        self._arrays: dict[tuple[str, int], tuple[NDArray[Any], int]] = {}

    def array(self, name: str, side: int, size: int, kind: Any) -> tuple[NDArray[Any], int]:
        """An array of at least so many numbers, with what was written to it last, and its address."""
        found = self._arrays.get((name, side))
        if found is None or len(found[0]) < size:
            array = np.empty(max(size, 4096) * 5 // 4, kind)
            found = self._arrays[name, side] = array, address(array)
        return found

    def trim(self) -> None:
        """Forget arrays that one great text made great."""
        small = {key: found for key, found in self._arrays.items() if found[0].nbytes <= 8 * KEPT_ROOM}
        self._arrays = small


def zeros(nbytes: int) -> tuple[NDArray[np.uint8], int]:
    """Fresh memory, in large pages where the system has them: what is looked up in it lies far apart."""
    array = Arena().take(nbytes)
    array[:] = 0
    return array, address(array)


@dataclass
class Texts:
    """Texts on their way: UTF-8 in a room, cut into pieces. Arrays are told by their addresses, too."""

    room: Room
    text: tuple[NDArray[np.uint8], int]
    length: int
    pieces: tuple[NDArray[np.int32], int]  # (n, 2), flat
    count: int
    ends: tuple[NDArray[np.int32], int]
    texts: int
    side: int = 0  # of the room, where the pieces are
    text_side: int = 0  # where the text and its ends are

    @classmethod
    def of(cls, room: Room, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None = None) -> Texts:
        """Encoded texts; ``pieces`` if they are cut already."""
        joined = data[0] if len(data) == 1 else b"".join(data)
        length = len(joined)
        if length > MOST_BYTES:
            raise InvalidRequest(
                f"a text of {length:,} bytes; the limit is {MOST_BYTES:,}: encode it in parts"
            )
        count = len(data) if pieces is None else len(pieces)
        text = room.array("text", 0, length + text_pieces.PADDING, np.uint8)
        ends = room.array("ends", 0, len(data), np.int32)
        spans = room.array("pieces", 0, 2 * count, np.int32)
        ctypes.memmove(text[1], joined, length)
        ends[0][: len(data)] = [length] if len(data) == 1 else list(accumulate(map(len, data)))
        if pieces is not None:
            spans[0][: 2 * count] = np.array(pieces, np.int32).reshape(-1)
        else:
            spans[0][0] = 0
            spans[0][2 : 2 * count : 2] = ends[0][: count - 1]
            spans[0][1 : 2 * count : 2] = ends[0][:count]
        return cls(room, text, length, spans, count, ends, len(data))

    def spans(self) -> NDArray[np.int32]:
        """The pieces, (n, 2): first byte, and the one behind the last."""
        return self.pieces[0][: 2 * self.count].reshape(-1, 2)

    def sizes(self) -> NDArray[np.int32]:
        """How many bytes each piece has, (n,); none for an id."""
        spans = self.spans()
        sizes: NDArray[np.int32] = np.maximum(spans[:, 1] - spans[:, 0], 0)
        return sizes


class Stage(Protocol):
    """Pieces of texts → others. False if this cannot be done here, and Python must do it."""

    def __call__(self, texts: Texts) -> bool: ...


class Cut:
    """Pieces cut into smaller ones of the same text, by ``_kernel``."""

    _kernel: Call

    def __call__(self, texts: Texts) -> bool:
        self._cut(texts)
        return True

    def _cut(self, texts: Texts, **more: int) -> None:
        """``more`` is what else the kernel is told."""
        room, side = texts.room, 1 - texts.side
        out = room.array("pieces", side, 2 * (texts.length + texts.count + 1), np.int32)
        self._kernel(
            text=texts.text[1],
            pieces=texts.pieces[1],
            count=texts.count,
            out=out[1],
            made=room.made_place,
            **more,
        )
        texts.pieces, texts.count, texts.side = out, int(room.made[0]), side


STEPS, STEPS_A_BYTE = 1_000_000, 256
"""How many steps a pattern may take: many times what one takes that reads a text a few times."""


class Cutting(Cut):
    """Pieces cut where a pattern matches. Raises :class:`InvalidRequest` for texts that take it too many steps."""

    def __init__(self, pattern: str, automaton: Automaton, behavior: str, inverted: bool) -> None:
        self._pattern = pattern
        self._kernel = Call(
            "text.split",
            text_split.Split,
            classes=automaton.classes,
            table=automaton.table,
            columns=automaton.table.shape[1],
            starts=automaton.starts,
            behavior=text_split.BEHAVIORS.index(behavior),
            inverted=int(inverted),
        )

    def __call__(self, texts: Texts) -> bool:
        steps = STEPS + STEPS_A_BYTE * texts.length
        self._cut(texts, most_steps=steps)
        if texts.count < 0:
            raise too_slow(self._pattern, f"{steps:,} steps for {texts.length:,} bytes")
        return True


class Adding(Cut):
    """Added tokens cut out; ``emitted`` (n,) int32 has the id of each, or -1 where it is left as text."""

    def __init__(self, tokens: Sequence[bytes], emitted: NDArray[np.int32]) -> None:
        tree, starts = tables.Tree.of(tokens), np.zeros(256, np.uint8)
        starts[[token[0] for token in tokens]] = 1
        known = {
            "starts": starts,
            "slots": tree.slots,
            "ids": tree.ids,
            "emitted": emitted,
        }
        self._kernel = Call("text.added", text_added.Added, **known)


class Separating(Cut):
    """Pieces cut between characters that are no neighbours; parts are ``marked`` as such if it matters."""

    def __init__(self, neighbours: tables.Neighbours, marked: bool) -> None:
        pairs = neighbours.pairs
        table, mask = tables.slots(len(pairs), 1)
        told = {"slots": table, "mask": mask}
        Call("text.neighbours", text_apart.Neighbours, pairs=pairs, count=len(pairs), **told)()
        common, together = neighbours.most_common()
        told |= {"common": common, "together": together, "flags": neighbours.flags, "marked": int(marked)}
        self._kernel = Call("text.apart", text_apart.Apart, neighbours.everywhere, **told)


GROWTH = 4  # bytes for each byte, in one stage: beyond that Python counts the characters


class Changing:
    """Other texts made of texts, by ``_kernel``; a byte becomes ``_growth`` of them at most, and a piece gets
    ``_ahead`` more. A piece that grows so much that it may pass the limit (``aligned.check_growth``) is for Python."""

    _kernel: Call
    _growth: int
    _ahead = 0

    def __call__(self, texts: Texts) -> bool:
        room, side, text_side = texts.room, 1 - texts.side, 1 - texts.text_side
        length = self._growth * texts.length + (self._ahead + 1) * texts.count
        if length >= text_pieces.PART or self._ahead > MORE:
            return False
        out = room.array("text", text_side, length + text_pieces.PADDING, np.uint8)
        pieces = room.array("pieces", side, 2 * texts.count, np.int32)
        ends = room.array("ends", text_side, texts.texts, np.int32)
        self._kernel(
            text=texts.text[1],
            pieces=texts.pieces[1],
            count=texts.count,
            ends=texts.ends[1],
            texts=texts.texts,
            out=out[1],
            out_pieces=pieces[1],
            out_ends=ends[1],
            status=room.made_place,
            **self._more(room),
        )
        if int(room.made[0]) != text_rewrite.DONE:
            return False
        before = texts.sizes()
        texts.text, texts.pieces, texts.ends = out, pieces, ends
        texts.side, texts.text_side = side, text_side
        texts.length = int(ends[0][texts.texts - 1])
        return not np.any(texts.sizes() > GROWTH * before + MORE)

    def _more(self, room: Room) -> dict[str, int]:
        """What else the kernel is told each time."""
        return {}


class Rewriting(Changing):
    """Characters replaced."""

    def __init__(self, change: CharacterMap) -> None:
        self._growth, self._ahead = change.growth, len(change.prefix)
        rules, told = change.rules, dict[str, Any]()
        if rules is not None:
            tree = tables.Tree.of([key.encode() for key in rules.replaced])
            ends = np.where(tree.ids >= 0, np.append(rules.places, 0)[tree.ids], -1).astype(np.int32)
            told = {"flags": rules.flags, "slots": tree.slots, "rules": ends}
        self._kernel = Call(
            "text.rewrite",
            text_rewrite.Rewrite,
            "none" if rules is None else rules.which,
            **told,
            targets=change.targets,
            written=change.written,
            collapse=int(change.collapse),
            trim=int(change.trim),
            prefix=np.frombuffer(change.prefix or b"\0", np.uint8),
            prefix_length=len(change.prefix),
            when=change.when,
            unless_there=int(change.unless_there),
            plain=int(change.plain),
        )


class Normalizing(Changing):
    """Texts in a normalisation form."""

    def __init__(self, table: FormTable) -> None:
        self._growth = table.growth
        self._kernel = Call(
            "text.normalize",
            text_normalize.Normalize,
            properties=table.properties,
            places=table.places,
            written=table.written,
            composes=int(table.composes),
            pairs=table.pairs.slots,
            pairs_mask=table.pairs.mask,
        )

    def _more(self, room: Room) -> dict[str, int]:
        return {"scratch": room.array("parts", 0, text_normalize.MOST, np.int32)[1]}


@dataclass(frozen=True)
class Model:
    """A kernel that makes ids of pieces; ``scratch`` says how many bytes it wants for a longest piece of so many.

    ``lengths`` (V,) are the bytes of text that each id stands for, -1 where that hangs on more than the id; ``stages``
    are those that it wants between the pre-tokenizer and itself.
    """

    name: str
    record: type[Record]
    scratch: Any
    lengths: NDArray[np.int32]
    parameters: tuple[Any, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Placed:
    """Ids (T,) with the pieces (n, 2) that they are of: piece i has those from ``firsts[i]`` on, (n + 1,)."""

    ids: NDArray[np.int32]
    pieces: NDArray[np.int32]
    firsts: NDArray[np.int32]


class Pipeline:
    """The stages of a tokenizer and its model.

    ``early`` are those before the pre-tokenizer, for texts in which control tokens are text, and others; None where
    Python must do them.
    """

    def __init__(
        self, early: Mapping[bool, Sequence[Stage] | None], late: Sequence[Stage], model: Model
    ) -> None:
        self._early, self._late, self._scratch = early, (*late, *model.stages), model.scratch
        self._between, self.lengths = model.stages, model.lengths
        known = {"memory_mask": ENTRIES - 1, "long_mask": LONG_ENTRIES - 1, **model.known}
        self._model = Call(model.name, model.record, *model.parameters, **known)
        self._rooms: deque[Room] = deque()

    def ids(self, texts: Sequence[bytes], parse_special: bool) -> list[NDArray[np.int32]] | None:
        """The ids of each text, or None if it is for Python to normalise one of them."""
        early = self._early[parse_special]
        if not texts:
            return []
        return None if early is None else self._through(texts, None, (*early, *self._late), self._encode)

    def ids_of_pieces(
        self, texts: Sequence[bytes], pieces: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.int32]]:
        """The same for texts that are normalised and cut at added tokens: spans of bytes, or -1 - id as the end."""
        if not pieces:
            return [np.zeros(0, np.int32) for _ in texts]
        found = self._through(texts, pieces, self._late, self._encode)
        if found is None:  # a prefix or a longer space has made too much of it
            size = sum(map(len, texts))
            raise InvalidRequest(
                f"a text of {size:,} bytes, which the pre-tokenizer makes too long: encode it in parts"
            )
        return found

    def placed(self, text: bytes, pieces: Sequence[tuple[int, int]], late: Sequence[Stage]) -> Placed | None:
        """The ids of such a text, which has a piece, and where they are; ``late`` are the stages to go through."""
        return self._through([text], pieces, (*late, *self._between), self._place)

    def _through(
        self,
        data: Sequence[bytes],
        pieces: Sequence[tuple[int, int]] | None,
        stages: Iterable[Stage],
        finish: Callable[[Texts], T],
    ) -> T | None:
        """What ``finish`` makes of texts that have gone through the stages; None if one of these could not."""
        try:
            room = self._rooms.pop()
        except IndexError:  # all of them are in use
            room = Room()
        texts = Texts.of(room, data, pieces)
        found = finish(texts) if all(stage(texts) for stage in stages) else None
        if texts.length > KEPT_ROOM:
            room.trim()
        self._rooms.append(room)
        return found

    def _run(self, texts: Texts, firsts: int = 0) -> tuple[NDArray[np.int32], list[int]]:
        """The ids of all texts, in the room, and where those of each end."""
        room, spans = texts.room, texts.spans()
        longest = int(((spans[:, 1] & ~text_pieces.PART) - spans[:, 0]).max(initial=0))
        size = texts.length + texts.count + text_pieces.FIRST_IDS
        out, counts = room.array("ids", 0, size, np.int32), room.array("counts", 0, texts.texts, np.int64)
        self._model(
            text=texts.text[1],
            pieces=texts.pieces[1],
            count=texts.count,
            ends=texts.ends[1],
            counts=counts[1],
            texts=texts.texts,
            memory=room.memory_place,
            long_memory=room.long_place,
            scratch=room.array("scratch", 0, self._scratch(longest), np.uint8)[1],
            out=out[1],
            firsts=firsts,
        )
        return out[0], counts[0][: texts.texts].tolist()

    def _encode(self, texts: Texts) -> list[NDArray[np.int32]]:
        out, stops = self._run(texts)
        return [out[start:stop].copy() for start, stop in zip([0, *stops], stops)]

    def _place(self, texts: Texts) -> Placed:
        firsts = np.empty(texts.count + 1, np.int32)
        out, (stop,) = self._run(texts, address(firsts))
        firsts[-1] = stop
        return Placed(out[:stop].copy(), texts.spans().copy(), firsts)


def merging(
    symbols: str,
    whole: bool,
    pairs: tables.Pairs,
    words: tables.Words,
    neighbours: tables.Neighbours,
    lengths: NDArray[np.int32],
    **known: Any,
) -> Model:
    """Byte-pair encoding by compiled code, of bytes or characters."""
    told = {
        "pairs": pairs.slots,
        "pairs_mask": pairs.mask,
        "words": words.slots,
        "words_mask": words.mask,
        "word_text": words.pieces.text,
        "word_places": words.pieces.places,
        "word_state": words.state,
    }
    stages = (Separating(neighbours, whole),)
    return Model(
        "text.merge",
        text_merge.Merge,
        text_merge.scratch_bytes,
        lengths,
        (symbols, whole),
        told | known,
        stages,
    )
