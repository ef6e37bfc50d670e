"""Encoding by compiled code: texts to ids through all stages of a tokenizer, without the GIL.

In: texts. Out: their ids, equal to the ids from the Python stages in ``stages/`` and ``kinds/``, but faster. A stage is
a kernel with the fields of its record. It turns spans of texts (``pieces``) into other spans. Many texts are
concatenated and pass through a stage together.

A call changes only its workspace (``workspace.py``): buffers, and caches of the ids of pre-tokens.
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
from pellucid.tokenize.compiled.compiled_model import CompiledModel
from pellucid.tokenize.compiled.compiled_stages import CompiledStage
from pellucid.tokenize.compiled.workspace import MAX_BYTES, MAX_KEPT_BYTES, TextBatch, WorkspacePool

T = TypeVar("T")


class SpanIds(Struct, frozen=True):
    """Ids (T,) and spans of bytes ``pieces`` (n, 2). The ids of span i begin at ``firsts[i]``, (n + 1,)."""

    ids: NDArray[np.int32]
    pieces: NDArray[np.int32]
    firsts: NDArray[np.int32]


class CompiledPipeline:
    """The compiled stages of a tokenizer and its model.

    ``normalize`` maps ``parse_special`` to the stages before the pre-tokenizer, or to None if Python must run them.
    ``pretokenize`` are the stages of the pre-tokenizer.
    """

    def __init__(
        self,
        normalize: Mapping[bool, Sequence[CompiledStage] | None],
        pretokenize: Sequence[CompiledStage],
        model: CompiledModel,
    ) -> None:
        self._normalize, self._pretokenize = normalize, (*pretokenize, *model.stages)
        self._scratch, self._model_stages, self.lengths = model.scratch, model.stages, model.lengths
        self._model = Call(model.kernel, model.record, **model.known)
        self._workspaces = WorkspacePool()

    def normalizes(self, parse_special: bool) -> bool:
        """True if compiled code can run the stages before the pre-tokenizer: added tokens and the normalizer."""
        return self._normalize[parse_special] is not None

    def ids(self, texts: Sequence[bytes], parse_special: bool) -> list[NDArray[np.int32]] | None:
        """The ids of each text, or None if Python must normalize a text."""
        if not texts:
            return []
        if (stages := self._normalize[parse_special]) is None:
            return None
        return self._run_stages(texts, None, (*stages, *self._pretokenize), self._ids_by_text)

    def ids_of_pieces(
        self, texts: Sequence[bytes], pieces: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.int32]] | None:
        """The ids of texts that are already normalized and cut at added tokens, or None if a stage gave up.

        ``pieces`` are spans of bytes; an added token has -1 - id as its end.
        """
        if not pieces:
            return [np.zeros(0, np.int32) for _ in texts]
        return self._run_stages(texts, pieces, self._pretokenize, self._ids_by_text)

    def ids_with_spans(
        self, text: bytes, pieces: Sequence[tuple[int, int]], pretokenize: Sequence[CompiledStage]
    ) -> SpanIds | None:
        """The ids of one text with at least one span, and their spans. ``pretokenize`` are the stages to run."""
        return self._run_stages([text], pieces, (*pretokenize, *self._model_stages), self._ids_by_span)

    def _run_stages(
        self,
        data: Sequence[bytes],
        pieces: Sequence[tuple[int, int]] | None,
        stages: Iterable[CompiledStage],
        finish: Callable[[TextBatch], T],
    ) -> T | None:
        """Run stages on texts and return the result of ``finish``.

        None if a stage gave up, or if several texts are too long together.
        """
        if len(data) > 1 and sum(map(len, data)) > MAX_BYTES:
            return None
        workspace = self._workspaces.acquire()
        batch = TextBatch.of(workspace, data, pieces)
        workspace.count_text(batch.length)
        result = finish(batch) if all(stage(batch) for stage in stages) else None
        if batch.length > MAX_KEPT_BYTES:
            workspace.trim()
        self._workspaces.release(workspace)
        return result

    def _run_model(self, batch: TextBatch, firsts: int = 0) -> tuple[NDArray[np.int32], list[int]]:
        """The ids of all texts, in a buffer of the workspace, and the end of each text's ids."""
        workspace, spans = batch.workspace, batch.spans()
        longest = int(((spans[:, 1] & ~text_pieces.PART) - spans[:, 0]).max(initial=0))
        size = batch.length + batch.piece_count + text_pieces.FIRST_IDS
        ids = workspace.array("ids", 0, size, np.int32)
        counts = workspace.array("counts", 0, batch.text_count, np.int64)
        self._model(
            text=batch.text.address,
            pieces=batch.pieces.address,
            count=batch.piece_count,
            ends=batch.ends.address,
            counts=counts.address,
            texts=batch.text_count,
            memory=workspace.short_cache.address,
            memory_mask=workspace.short_entries - 1,
            long_memory=workspace.long_cache.address,
            long_mask=workspace.long_entries - 1,
            scratch=workspace.array("scratch", 0, self._scratch(longest), np.uint8).address,
            out=ids.address,
            firsts=firsts,
        )
        return ids.array, counts.array[: batch.text_count].tolist()

    def _ids_by_text(self, batch: TextBatch) -> list[NDArray[np.int32]]:
        ids, ends = self._run_model(batch)
        return [ids[start:end].copy() for start, end in zip([0, *ends], ends)]

    def _ids_by_span(self, batch: TextBatch) -> SpanIds:
        firsts = np.empty(batch.piece_count + 1, np.int32)
        ids, (end,) = self._run_model(batch, address(firsts))
        firsts[-1] = end
        return SpanIds(ids[:end].copy(), batch.spans().copy(), firsts)
