"""The hot path, compiled: a text's pieces, and the ids that byte-pair encoding makes of them.

In: a text, normalised, without control tokens. Out: ids. The stages are those of ``pretokenize.py`` and of
``kinds/byte_bpe.py``, which say the same in Python: what they give is what this gives, faster. Nothing here is
changed by a call but memories of what was met before, of which every thread takes one for itself; the GIL is not
held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels import text_merge, text_split
from pellucid.kernels.library import KernelKey, shared
from pellucid.kernels.record import Record
from pellucid.runtime.memory import address
from pellucid.tokenize.automaton import Automaton

ENTRIES = 1 << 16  # of a memory: 4 MB
MOST_BYTES = 1 << 30  # of a text


@dataclass(frozen=True)
class Step:
    """One pattern that cuts pieces: its automaton, what becomes of a match, and whether matches are the gaps."""

    automaton: Automaton
    behavior: str = "Isolated"
    inverted: bool = False


class _Kernel:
    """A compiled function of its record's fields, of which some are ``known`` beforehand."""

    def __init__(self, name: str, record: type[Record], *parameters: Any, **known: int) -> None:
        self._run = shared().function(KernelKey(name, parameters), 4)
        fields = dict.fromkeys(record.fields, 0) | known
        self._words = np.array([0] * record.header + record.pack(fields), np.int64)
        self._place = {field: offset // 8 for field, offset in record.at._asdict().items()}

    def __call__(self, **fields: int) -> None:
        words = self._words.copy()
        for field, value in fields.items():
            words[self._place[field]] = value
        self._run(address(words), 0, 0, 0)


def kernels(whole: bool) -> list[KernelKey]:
    """What ``ByteMerge`` needs."""
    return [
        KernelKey("text.split"),
        KernelKey("text.merge", (whole,)),
        KernelKey("text.words"),
        KernelKey("text.pairs"),
    ]


class Words:
    """Pieces by their bytes, ``V`` of them; a piece of no bytes is in no text.

    ``spelled`` is all pieces' bytes, ``places`` (V + 1,) where each begins.
    """

    def __init__(self, spelled: bytes, places: NDArray[np.int32]) -> None:
        self.text = np.frombuffer(spelled + bytes(text_merge.PADDING), np.uint8)
        self.places, count = places, len(places) - 1
        self.slots, self.mask = _slots(int(np.count_nonzero(np.diff(places))))
        fill = _Kernel("text.words", text_merge.Words, mask=self.mask)
        fill(text=address(self.text), places=address(places), count=count, slots=address(self.slots))
        self.state = np.zeros(count, np.uint8)


class Pairs:
    """What two neighbours become: ``lefts``, ``rights``, ``merged`` and ``ranks`` (n,) int32."""

    def __init__(
        self,
        lefts: NDArray[np.int32],
        rights: NDArray[np.int32],
        merged: NDArray[np.int32],
        ranks: NDArray[np.int32],
    ) -> None:
        self.slots, self.mask = _slots(len(lefts))
        fill = _Kernel("text.pairs", text_merge.Pairs, count=len(lefts), mask=self.mask)
        columns = {"lefts": lefts, "rights": rights, "merged": merged, "ranks": ranks}
        fill(**{name: address(column) for name, column in columns.items()}, slots=address(self.slots))


def _slots(count: int) -> tuple[NDArray[np.int64], int]:
    """Room for so many entries, half of it empty: the array, and its size less one."""
    size = max(16, 1 << (2 * count - 1).bit_length() if count else 16)
    return np.full((size, 2), text_merge.EMPTY, np.int64), size - 1


class ByteMerge:
    """Text to ids, for byte-level byte-pair encoding.

    ``byte_ids`` (256,) int32 is each byte's id, below 0 where it has none and vanishes. ``whole``: a piece that is a
    word of the vocabulary is that one, whatever its bytes merge to.
    """

    def __init__(
        self, steps: Sequence[Step], words: Words, pairs: Pairs, byte_ids: NDArray[np.int32], whole: bool
    ) -> None:
        self._steps, self._words, self._pairs, self._byte_ids = tuple(steps), words, pairs, byte_ids
        self._whole = whole
        self._memories: deque[NDArray[np.uint8]] = deque()

    @cached_property
    def _cuts(self) -> list[_Kernel]:
        """What makes each step's pieces."""
        return [
            _Kernel(
                "text.split",
                text_split.Split,
                classes=address(step.automaton.classes),
                table=address(step.automaton.table),
                columns=step.automaton.table.shape[1],
                behavior=text_split.BEHAVIORS.index(step.behavior),
                inverted=int(step.inverted),
            )
            for step in self._steps
        ]

    @cached_property
    def _merge(self) -> _Kernel:
        words, pairs = self._words, self._pairs
        return _Kernel(
            "text.merge",
            text_merge.Merge,
            self._whole,
            bytes=address(self._byte_ids),
            pairs=address(pairs.slots),
            pairs_mask=pairs.mask,
            words=address(words.slots),
            words_mask=words.mask,
            word_text=address(words.text),
            word_places=address(words.places),
            word_state=address(words.state),
            memory_mask=ENTRIES - 1,
        )

    def __call__(self, text: str) -> list[int]:
        """The ids of a text. Raises :class:`InvalidRequest` for one whose places do not fit into 31 bits."""
        encoded = text.encode()
        if len(encoded) > MOST_BYTES:
            raise InvalidRequest(
                f"a text of {len(encoded):,} bytes; the limit is {MOST_BYTES:,}: encode it in parts"
            )
        data = np.frombuffer(encoded + bytes(text_merge.PADDING), np.uint8)
        pieces = self.pieces(data)
        longest = int((pieces[:, 1] - pieces[:, 0]).max(initial=0))
        out, made = np.empty(len(data) + text_merge.KEPT_IDS, np.int32), np.zeros(1, np.int64)
        scratch, memory = np.empty(text_merge.scratch_bytes(longest), np.uint8), self._memory()
        self._merge(
            text=address(data),
            pieces=address(pieces),
            count=len(pieces),
            memory=address(memory),
            scratch=address(scratch),
            out=address(out),
            made=address(made),
        )
        self._memories.append(memory)
        ids: list[int] = out[: int(made[0])].tolist()
        return ids

    def pieces(self, data: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The pieces of a text, whose UTF-8 has padding behind it, (n, 2): first byte, and the one behind the last."""
        length, text = len(data) - text_merge.PADDING, address(data)
        pieces, made = np.array([[0, length]], np.int32), np.zeros(1, np.int64)
        for cut in self._cuts:
            out = np.empty((length + 1, 2), np.int32)
            cut(text=text, pieces=address(pieces), count=len(pieces), out=address(out), made=address(made))
            pieces = out[: int(made[0])]
        return pieces

    def _memory(self) -> NDArray[np.uint8]:
        """A memory that no other thread uses."""
        try:
            return self._memories.pop()
        except IndexError:
            return np.zeros(ENTRIES * text_merge.ENTRY, np.uint8)
