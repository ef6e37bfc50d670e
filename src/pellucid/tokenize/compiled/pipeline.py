"""Encoding by compiled code: texts to ids through all stages of a tokenizer, without the GIL.

In: texts. Out: their ids, equal to the ids from the Python stages in ``stages/`` and ``kinds/``, but faster. A stage is
a kernel with the fields of its record. It turns spans of texts (``pieces``) into other spans. Many texts are
concatenated and pass through a stage together.

A call changes only its room (``texts.py``): buffers, and caches of the ids of pre-tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.text import pieces as text_pieces
from pellucid.runtime.call import Call
from pellucid.runtime.memory import address
from pellucid.tokenize.compiled.model import CompiledModel
from pellucid.tokenize.compiled.stages import CompiledStage
from pellucid.tokenize.compiled.texts import MAX_BYTES, ROOM_BYTES, Rooms, Texts

T = TypeVar("T")


class Placed(Struct, frozen=True):
    """Ids (T,) and spans of bytes ``pieces`` (n, 2). The ids of span i begin at ``firsts[i]``, (n + 1,)."""

    ids: NDArray[np.int32]
    pieces: NDArray[np.int32]
    firsts: NDArray[np.int32]


class Pipeline:
    """The compiled stages of a tokenizer and its model.

    ``early`` maps ``parse_special`` to the stages before the pre-tokenizer, or to None if Python must run them.
    ``late`` are the stages of the pre-tokenizer.
    """

    def __init__(
        self,
        early: Mapping[bool, Sequence[CompiledStage] | None],
        late: Sequence[CompiledStage],
        model: CompiledModel,
    ) -> None:
        self._early, self._late, self._scratch = early, (*late, *model.stages), model.scratch
        self._model_stages, self.lengths = model.stages, model.lengths
        self._model = Call(model.kernel, model.record, **model.known)
        self._rooms = Rooms()

    def has_early(self, parse_special: bool) -> bool:
        """True if compiled code can run the stages before the pre-tokenizer: added tokens and the normalizer."""
        return self._early[parse_special] is not None

    def ids(self, texts: Sequence[bytes], parse_special: bool) -> list[NDArray[np.int32]] | None:
        """The ids of each text, or None if Python must normalize a text."""
        early = self._early[parse_special]
        if not texts:
            return []
        return None if early is None else self._run_stages(texts, None, (*early, *self._late), self._encode)

    def ids_of_pieces(
        self, texts: Sequence[bytes], pieces: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.int32]] | None:
        """The ids of texts that are already normalized and cut at added tokens, or None if a stage gave up.

        ``pieces`` are spans of bytes; an added token has -1 - id as its end.
        """
        if not pieces:
            return [np.zeros(0, np.int32) for _ in texts]
        return self._run_stages(texts, pieces, self._late, self._encode)

    def placed(
        self, text: bytes, pieces: Sequence[tuple[int, int]], late: Sequence[CompiledStage]
    ) -> Placed | None:
        """``ids_of_pieces`` for one text with at least one span, with the spans; runs the stages ``late``."""
        return self._run_stages([text], pieces, (*late, *self._model_stages), self._place)

    def _run_stages(
        self,
        data: Sequence[bytes],
        pieces: Sequence[tuple[int, int]] | None,
        stages: Iterable[CompiledStage],
        finish: Callable[[Texts], T],
    ) -> T | None:
        """Run stages on texts and return the result of ``finish``.

        None if a stage gave up, or if several texts are too long together.
        """
        if len(data) > 1 and sum(map(len, data)) > MAX_BYTES:
            return None
        room = self._rooms.take()
        texts = Texts.of(room, data, pieces)
        room.grow(texts.length)
        found = finish(texts) if all(stage(texts) for stage in stages) else None
        if texts.length > ROOM_BYTES:
            room.trim()
        self._rooms.give_back(room)
        return found

    def _run(self, texts: Texts, firsts: int = 0) -> tuple[NDArray[np.int32], list[int]]:
        """The ids of all texts, in a buffer of the room, and the end of each text's ids."""
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
            memory_mask=room.entries - 1,
            long_memory=room.long_place,
            long_mask=room.long_entries - 1,
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
