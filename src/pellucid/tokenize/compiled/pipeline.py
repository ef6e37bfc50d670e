"""Encoding by compiled code: texts to ids, all stages of a tokenizer one after the other, without the GIL.

In: texts. Out: their ids. The stages are those of ``stages/`` and ``kinds/``,
which say the same in Python: what they give is what this gives, faster. A stage is a kernel and what it is told; it
takes pieces of texts and leaves others. Many texts lie behind one another and go through a stage together.

Nothing here is changed by a call but what a thread has to itself: room to work in, and a memory of what was met before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.text import pieces as text_pieces
from pellucid.runtime.call import Call
from pellucid.runtime.memory import address
from pellucid.tokenize.compiled.model import CompiledModel
from pellucid.tokenize.compiled.stages import CompiledStage
from pellucid.tokenize.compiled.texts import ENTRIES, LONG_ENTRIES, ROOM_BYTES, Room, Texts

T = TypeVar("T")


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
        self,
        early: Mapping[bool, Sequence[CompiledStage] | None],
        late: Sequence[CompiledStage],
        model: CompiledModel,
    ) -> None:
        self._early, self._late, self._scratch = early, (*late, *model.stages), model.scratch
        self._between, self.lengths = model.stages, model.lengths
        known = {"memory_mask": ENTRIES - 1, "long_mask": LONG_ENTRIES - 1, **model.known}
        self._model = Call(model.kernel, model.record, **known)
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

    def placed(
        self, text: bytes, pieces: Sequence[tuple[int, int]], late: Sequence[CompiledStage]
    ) -> Placed | None:
        """The ids of such a text, which has a piece, and where they are; ``late`` are the stages to go through."""
        return self._through([text], pieces, (*late, *self._between), self._place)

    def _through(
        self,
        data: Sequence[bytes],
        pieces: Sequence[tuple[int, int]] | None,
        stages: Iterable[CompiledStage],
        finish: Callable[[Texts], T],
    ) -> T | None:
        """What ``finish`` makes of texts that have gone through the stages; None if one of these could not."""
        try:
            room = self._rooms.pop()
        except IndexError:  # all of them are in use
            room = Room()
        texts = Texts.of(room, data, pieces)
        found = finish(texts) if all(stage(texts) for stage in stages) else None
        if texts.length > ROOM_BYTES:
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
