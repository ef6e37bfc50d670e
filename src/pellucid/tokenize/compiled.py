"""Encoding by compiled code: texts to ids, all stages of a tokenizer one after the other, without the GIL.

In: texts. Out: their ids. The stages are those of ``added.py``, ``normalize.py``, ``pretokenize.py`` and ``kinds/``,
which say the same in Python: what they give is what this gives, faster. A stage is a kernel and what it is told; it
takes pieces of texts and leaves others. Many texts lie behind one another and go through a stage together.

Nothing here is changed by a call but what a thread has to itself: room to work in, and a memory of what was met before.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels import text_added, text_apart, text_pieces, text_rewrite, text_split, text_words
from pellucid.kernels.library import KernelKey, shared
from pellucid.kernels.record import Record
from pellucid.runtime.memory import Arena, address
from pellucid.tokenize.automaton import Automaton
from pellucid.tokenize.charmap import CharacterMap

ENTRIES, LONG_ENTRIES = 1 << 18, 1 << 14  # of a thread's memories: 16 MB, and 4 MB
MOST_BYTES = 1 << 28  # of the texts of a call, whose places are 31 bits, also when they have grown
KEPT_ROOM = 1 << 22  # bytes of text that a thread's room is kept for


class Kernel:
    """A compiled function of its record's fields, of which some are ``known`` beforehand.

    Arrays among them are kept, and told by their address.
    """

    def __init__(self, name: str, record: type[Record], *parameters: Any, **known: Any) -> None:
        self._run = shared().function(KernelKey(name, parameters), 4)
        self._arrays = [value for value in known.values() if isinstance(value, np.ndarray)]
        told = {name: address(v) if isinstance(v, np.ndarray) else v for name, v in known.items()}
        fields = dict.fromkeys(record.fields, 0) | told
        self._words = np.array([0] * record.header + record.pack(fields), np.int64)
        self._place = {field: offset // 8 for field, offset in record.at._asdict().items()}

    def __call__(self, **fields: int) -> None:
        words = self._words.copy()
        view = words.data
        for name, value in fields.items():
            view[self._place[name]] = value
        self._run(address(words), 0, 0, 0)


class Room:
    """What one thread works in: texts, their pieces and ends, each twice: a stage reads one and writes the other."""

    def __init__(self) -> None:
        self.memory, self.memory_place = zeros(ENTRIES * text_pieces.ENTRY)
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


class Stage(Protocol):
    """Pieces of texts → others. False if this cannot be done here, and Python must do it."""

    def __call__(self, texts: Texts) -> bool: ...


class Cutting:
    """Pieces cut where a pattern matches."""

    def __init__(self, automaton: Automaton, behavior: str, inverted: bool) -> None:
        self._kernel = Kernel(
            "text.split",
            text_split.Split,
            classes=automaton.classes,
            table=automaton.table,
            columns=automaton.table.shape[1],
            behavior=text_split.BEHAVIORS.index(behavior),
            inverted=int(inverted),
        )

    def __call__(self, texts: Texts) -> bool:
        _cut(self._kernel, texts)
        return True


class Adding:
    """Added tokens cut out; ``emitted`` (n,) int32 has the id of each, or -1 where it is left as text."""

    def __init__(self, tokens: Sequence[bytes], emitted: NDArray[np.int32]) -> None:
        tree, starts = Tree.of(tokens), np.zeros(256, np.uint8)
        starts[[token[0] for token in tokens]] = 1
        known = {
            "starts": starts,
            "slots": tree.slots,
            "mask": tree.mask,
            "ids": tree.ids,
            "emitted": emitted,
        }
        self._kernel = Kernel("text.added", text_added.Added, **known)

    def __call__(self, texts: Texts) -> bool:
        _cut(self._kernel, texts)
        return True


def _cut(kernel: Kernel, texts: Texts) -> None:
    room, side = texts.room, 1 - texts.side
    out = room.array("pieces", side, 2 * (texts.length + texts.count + 1), np.int32)
    kernel(
        text=texts.text[1],
        pieces=texts.pieces[1],
        count=texts.count,
        out=out[1],
        made=room.made_place,
    )
    texts.pieces, texts.count, texts.side = out, int(room.made[0]), side


@dataclass(frozen=True)
class Neighbours:
    """Which characters are next to each other in pieces of a vocabulary.

    ``pairs`` (n,) int64 are left << 21 | right; ``flags`` (0x110000,) uint8 forbid cuts after and before characters,
    whatever the pairs say (``text_apart.py``); ``everywhere``: all pairs are known, not only those of wide characters.
    """

    pairs: NDArray[np.int64]
    flags: NDArray[np.uint8]
    everywhere: bool

    @classmethod
    def of_text(cls, pieces: Iterable[str], together: NDArray[np.bool_]) -> Neighbours:
        """Of pieces of whole characters; those that are ``together`` (0x110000,) are not cut off from what follows."""
        codes = np.frombuffer("\0".join(pieces).encode("utf-32-le"), np.uint32).astype(np.int64)
        lefts, rights = codes[:-1], codes[1:]
        inside = (lefts > 0) & (rights > 0)
        flags = np.where(together, text_apart.AFTER, 0).astype(np.uint8)
        return cls(np.unique(lefts[inside] << 21 | rights[inside]), flags, everywhere=True)

    @classmethod
    def of_bytes(cls, pieces: Spelled) -> Neighbours:
        """Of pieces of bytes. Where one begins or ends within a character, it is not known what it is next to: no cut
        is made after, or before, what that may be a part of."""
        text, places = pieces.text, pieces.places
        leads = np.flatnonzero(text[: places[-1]] >= 0xE0)
        starts, ends = (places[np.searchsorted(places, leads, "right") + side] for side in (-1, 0))
        inside = leads > starts
        pairs, flags, data = set[int](), np.zeros(0x110000, np.uint8), text.tobytes()
        for lead, start, end in zip(leads[inside].tolist(), starts[inside].tolist(), ends[inside].tolist()):
            before = lead - 1
            while before > start and data[before] & 0xC0 == 0x80:
                before -= 1
            left, right = data[before:lead], data[lead : min(end, lead + (4 if data[lead] >= 0xF0 else 3))]
            if left[0] < 0x80 or 0xC0 <= left[0] < 0xE0:
                continue  # a narrow character
            known, behind = _character(left), _character(right)
            if known is not None and behind is not None:
                pairs.add(known << 21 | behind)
            elif behind is not None or (known is None and len(right) > len(left)):
                flags[_codes(right, True)] |= text_apart.BEFORE
            else:
                flags[_codes(left, False)] |= text_apart.AFTER
        return cls(np.array(sorted(pairs), np.int64), flags, everywhere=False)


class Separating:
    """Pieces cut between characters that are no neighbours; parts are ``marked`` as such if it matters."""

    def __init__(self, neighbours: Neighbours, marked: bool) -> None:
        pairs = neighbours.pairs
        table, mask = slots(len(pairs), 1)
        told = {"slots": table, "mask": mask}
        Kernel("text.neighbours", text_apart.Neighbours, pairs=pairs, count=len(pairs), **told)()
        ascii_ = np.zeros((128, 128), np.uint8)
        narrow = pairs[(pairs >> 21 < 128) & (pairs & 0x1FFFFF < 128)]
        ascii_[narrow >> 21, narrow & 127] = 1
        ascii_[neighbours.flags[:128] & text_apart.AFTER > 0] = 1
        told |= {"ascii": ascii_, "flags": neighbours.flags, "marked": int(marked)}
        self._kernel = Kernel("text.apart", text_apart.Apart, neighbours.everywhere, **told)

    def __call__(self, texts: Texts) -> bool:
        _cut(self._kernel, texts)
        return True


def _character(data: bytes) -> int | None:
    try:
        return ord(data.decode())
    except (UnicodeDecodeError, TypeError):
        return None


def _codes(part: bytes, begins: bool) -> NDArray[np.int64]:
    """The wide characters whose UTF-8 begins, or ends, with some bytes."""
    codes = np.arange(text_apart.WIDE, 0x110000)
    sixes = [codes & 63 | 0x80, codes >> 6 & 63 | 0x80, codes >> 12 & 63 | 0x80]
    narrow = codes < 0x10000
    lead = np.where(narrow, codes >> 12 | 0xE0, codes >> 18 | 0xF0)
    # Bytes from the front, or from the back; a character of three has its first where one of four has its second.
    front = [lead, np.where(narrow, sixes[1], sixes[2]), np.where(narrow, sixes[0], sixes[1]), sixes[0]]
    back = [sixes[0], sixes[1], np.where(narrow, lead, sixes[2]), np.where(narrow, 0, lead)]
    matches = np.ones(len(codes), bool)
    for expected, there in zip(part if begins else part[::-1], front if begins else back):
        matches &= there == expected
    return codes[matches]


class Rewriting:
    """Characters replaced."""

    def __init__(self, change: CharacterMap) -> None:
        self._growth, self._prefix = change.growth, len(change.prefix)
        rules, told = change.rules, dict[str, Any]()
        if rules is not None:
            tree = Tree.of([key.encode() for key in rules.replaced])
            ends = np.where(tree.ids >= 0, np.append(rules.places, 0)[tree.ids], -1).astype(np.int32)
            told = {"flags": rules.flags, "slots": tree.slots, "mask": tree.mask, "rules": ends}
        self._kernel = Kernel(
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
        )

    def __call__(self, texts: Texts) -> bool:
        room, side, text_side = texts.room, 1 - texts.side, 1 - texts.text_side
        length = self._growth * texts.length + (self._prefix + 1) * texts.count
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
        )
        texts.text, texts.pieces, texts.ends = out, pieces, ends
        texts.side, texts.text_side = side, text_side
        texts.length = int(ends[0][texts.texts - 1])
        return int(room.made[0]) == text_rewrite.DONE


@dataclass(frozen=True)
class Model:
    """A kernel that makes ids of pieces; ``scratch`` says how many bytes it wants for a longest piece of so many.

    ``stages`` are those that it wants between the pre-tokenizer and itself.
    """

    name: str
    record: type[Record]
    scratch: Any
    parameters: tuple[Any, ...] = ()
    known: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()


class Pipeline:
    """The stages of a tokenizer and its model.

    ``early`` are those before the pre-tokenizer, for texts in which control tokens are text, and others; None where
    Python must do them.
    """

    def __init__(
        self, early: Mapping[bool, Sequence[Stage] | None], late: Sequence[Stage], model: Model
    ) -> None:
        self._early, self._late, self._scratch = early, (*late, *model.stages), model.scratch
        known = {"memory_mask": ENTRIES - 1, "long_mask": LONG_ENTRIES - 1, **model.known}
        self._model = Kernel(model.name, model.record, *model.parameters, **known)
        self._rooms: deque[Room] = deque()

    def ids(self, texts: Sequence[bytes], parse_special: bool) -> list[list[int]] | None:
        """The ids of each text, or None if it is for Python to normalise one of them."""
        early = self._early[parse_special]
        return None if early is None else self._through(texts, None, (*early, *self._late))

    def ids_of_pieces(self, texts: Sequence[bytes], pieces: Sequence[tuple[int, int]]) -> list[list[int]]:
        """The same for texts that are normalised and cut at added tokens: spans of bytes, or -1 - id as the end."""
        found = self._through(texts, pieces, self._late)
        assert found is not None
        return found

    def _through(
        self, data: Sequence[bytes], pieces: Sequence[tuple[int, int]] | None, stages: Iterable[Stage]
    ) -> list[list[int]] | None:
        if not data or (pieces is not None and not pieces):
            return [[] for _ in data]
        room = self._rooms.pop() if self._rooms else Room()
        texts = Texts.of(room, data, pieces)
        found = self._encode(texts) if all(stage(texts) for stage in stages) else None
        if texts.length > KEPT_ROOM:
            room.trim()
        self._rooms.append(room)
        return found

    def _encode(self, texts: Texts) -> list[list[int]]:
        room, spans = texts.room, texts.spans()
        longest = int(((spans[:, 1] & ~text_pieces.PART) - spans[:, 0]).max(initial=0))
        size = texts.length + texts.count + text_pieces.LONG_IDS
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
        )
        stops = counts[0][: texts.texts].tolist()
        ids = out[0][: stops[-1]].tolist()
        return [ids] if len(stops) == 1 else list(_parts(ids, stops))


def _parts(ids: list[int], stops: Iterable[int]) -> Iterator[list[int]]:
    start = 0
    for stop in stops:
        yield ids[start:stop]
        start = stop


def slots(count: int, width: int) -> tuple[NDArray[np.int64], int]:
    """Room for so many entries, half of it empty: the array, and its size less one."""
    size = max(16, 1 << (2 * count - 1).bit_length() if count else 16)
    table = Arena().take(8 * size * width).view(np.int64).reshape(size, width)
    table[:] = text_words.EMPTY
    return table, size - 1


@dataclass(frozen=True)
class Spelled:
    """Pieces by their bytes, V of them: all bytes, and where each piece begins, (V + 1,); one of none is in no text."""

    text: NDArray[np.uint8]
    places: NDArray[np.int32]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Spelled:
        places = np.zeros(len(pieces) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)), out=places[1:])
        return cls.from_bytes(b"".join(pieces), places)

    @classmethod
    def from_bytes(cls, text: bytes, places: NDArray[np.int32]) -> Spelled:
        return cls(np.frombuffer(text + bytes(text_pieces.PADDING), np.uint8), places)


class Words:
    """A table of pieces by their bytes, by which a whole one is found."""

    def __init__(self, pieces: Spelled) -> None:
        count = len(pieces.places) - 1
        self.pieces, self.state = pieces, np.zeros(count, np.uint8)
        self.slots, self.mask = slots(int(np.count_nonzero(np.diff(pieces.places))), 2)
        known = {"text": pieces.text, "places": pieces.places, "slots": self.slots, "mask": self.mask}
        Kernel("text.words", text_words.Words, **known, count=count)()


class Tree:
    """The pieces as a tree of their bytes. Raises :class:`InvalidRequest` for more nodes than it can number."""

    def __init__(self, pieces: Spelled) -> None:
        most = int(pieces.places[-1]) + 1
        if most > text_words.MOST_NODES:
            raise InvalidRequest(f"a vocabulary of {most:,} bytes; the limit is {text_words.MOST_NODES:,}")
        table, self.mask = slots(most, 1)
        self.slots, ids, nodes = table.reshape(-1), np.full(most, -1, np.int32), np.zeros(1, np.int64)
        known = {"text": pieces.text, "places": pieces.places, "slots": self.slots, "mask": self.mask}
        Kernel("text.tree", text_words.Tree, **known, count=len(pieces.places) - 1, ids=ids, nodes=nodes)()
        self.ids = ids[: int(nodes[0])].copy()

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> Tree:
        """Of pieces in the order of their ids; those of no bytes are left out."""
        return cls(Spelled.of(pieces))


class Pairs:
    """What two neighbours become: ``lefts``, ``rights``, ``merged`` and ``ranks`` (n,) int32."""

    def __init__(
        self,
        lefts: NDArray[np.int32],
        rights: NDArray[np.int32],
        merged: NDArray[np.int32],
        ranks: NDArray[np.int32],
    ) -> None:
        from pellucid.kernels.text_merge import Pairs

        self.slots, self.mask = slots(len(lefts), 2)
        self._columns = (lefts, rights, merged, ranks)
        columns = {"lefts": lefts, "rights": rights, "merged": merged, "ranks": ranks}
        Kernel("text.pairs", Pairs, **columns, count=len(lefts), slots=self.slots, mask=self.mask)()

    def of_bytes(self, byte_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """What each two bytes become, (256, 256), by their ids (256,), which are below 0 for none."""
        from pellucid.kernels.text_merge import NEVER

        lefts, rights, merged, ranks = self._columns
        table = np.full((256, 256), NEVER, np.int64)
        of = {int(index): byte for byte, index in enumerate(byte_ids) if index >= 0}
        known = np.array(sorted(of), np.int32)
        rows = np.flatnonzero(np.isin(lefts, known) & np.isin(rights, known))
        for row in rows[::-1].tolist():  # of a pair that is listed twice the first counts
            value = NEVER if merged[row] < 0 else int(ranks[row]) << 32 | int(merged[row])
            table[of[int(lefts[row])], of[int(rights[row])]] = value
        return table
