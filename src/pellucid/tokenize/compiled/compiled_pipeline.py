"""Encoding by compiled code: texts to ids through all stages of a tokenizer, without the GIL.

In: texts. Out: their ids, equal to the ids from the Python stages in ``stages/`` and ``kinds/``, but faster. Many texts
are concatenated and pass through a stage together, which turns spans of texts (``pieces``) into other spans. A call
changes only its workspace (``workspace.py``): buffers, and caches of the ids of pre-tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Record
from pellucid.kernels.text import cut as text_cut
from pellucid.kernels.text import merge as text_merge
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import split as text_split
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address
from pellucid.tokenize.compiled import tables
from pellucid.tokenize.compiled.workspace import MAX_BYTES, MAX_KEPT_BYTES, TextBatch, WorkspacePool
from pellucid.tokenize.patterns.automaton import Automaton
from pellucid.tokenize.patterns.matcher import too_slow

# The stages of a tokenizer as compiled code: each stage cuts spans of texts into smaller spans, or changes the texts
# (``rewrite_table.py``). A stage is a kernel with the fields of its record.

CompiledStage = Callable[[TextBatch], bool]
"""Runs a stage on texts, in place; returns False if it gave up and Python must run the stage."""


class CutStage:
    """Cuts spans into smaller spans with ``_kernel``; the text stays the same."""

    _kernel: Call

    def __call__(self, batch: TextBatch) -> bool:
        self._cut(batch)
        return True

    def _cut(self, batch: TextBatch, **fields: int) -> None:
        """Call the kernel, with further ``fields``, and store the new spans in ``batch``."""
        workspace, side = batch.workspace, 1 - batch.side
        out = workspace.array("pieces", side, 2 * (batch.length + batch.piece_count + 1), np.int32)
        self._kernel(
            text=batch.text.address,
            pieces=batch.pieces.address,
            count=batch.piece_count,
            out=out.address,
            made=workspace.result.address,
            **fields,
        )
        batch.pieces, batch.piece_count, batch.side = out, int(workspace.result.array[0]), side


MAX_STEPS, MAX_STEPS_PER_BYTE = 1_000_000, 256
"""Maximum number of steps of a pattern in a call: MAX_STEPS, plus MAX_STEPS_PER_BYTE for each byte of text. This is far
more than the number of steps for reading a text a few times."""


class SplitStage(CutStage):
    """Cuts spans where a pattern matches. Raises :class:`InvalidRequest` if the pattern takes too many steps."""

    def __init__(self, pattern: str, automaton: Automaton, behavior: str, inverted: bool) -> None:
        self._pattern = pattern
        self._kernel = Call(
            KernelKey("text.split"),
            text_split.SplitRecord,
            classes=automaton.classes,
            table=automaton.table,
            columns=automaton.table.shape[1],
            starts=automaton.starts,
            behavior=text_split.BEHAVIORS.index(behavior),
            inverted=int(inverted),
        )

    def __call__(self, batch: TextBatch) -> bool:
        steps = MAX_STEPS + MAX_STEPS_PER_BYTE * batch.length
        self._cut(batch, most_steps=steps)
        if batch.piece_count < 0:
            raise too_slow(self._pattern, f"{steps:,} steps for {batch.length:,} bytes")
        return True


class AddedTokenStage(CutStage):
    """Cuts out added tokens; ``emitted`` (n,) int32 has the id of each token, or -1 if it stays text."""

    def __init__(self, tokens: Sequence[bytes], emitted: NDArray[np.int32]) -> None:
        tree, starts = tables.PieceTree.of(tokens), np.zeros(256, np.uint8)
        starts[[token[0] for token in tokens]] = 1
        fields = {"starts": starts, "slots": tree.slots, "ids": tree.ids, "emitted": emitted}
        self._kernel = Call(KernelKey("text.added"), text_cut.AddedRecord, **fields)


class SeparateStage(CutStage):
    """Cuts spans between characters that are adjacent in no piece; ``marked`` sets the flag PART on each part."""

    def __init__(self, neighbours: tables.NeighbourTable, marked: bool) -> None:
        pairs = neighbours.pairs
        table, mask = tables.slots(len(pairs), 1)
        fields = {"slots": table, "mask": mask}
        tables.run("text.neighbours", text_cut.NeighboursRecord, pairs=pairs, count=len(pairs), **fields)
        common, together = neighbours.most_common()
        fields |= {"common": common, "together": together, "flags": neighbours.flags, "marked": int(marked)}
        self._kernel = Call(KernelKey("text.apart", everywhere=neighbours.everywhere), text_cut.ApartRecord, **fields)


class CompiledModel(Struct, frozen=True):
    """A kernel that turns pre-tokens into ids.

    ``scratch(n)`` is the number of bytes of scratch memory if the longest pre-token has n bytes. ``lengths`` (V,) has
    the number of bytes of text that each id covers, or -1 if this number depends on more than the id. ``known`` has the
    fields of ``record`` that are the same in every call. ``stages`` run between the pre-tokenizer and the model.
    """

    kernel: KernelKey
    record: type[Record]
    scratch: Any
    lengths: NDArray[np.int32]
    known: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[CompiledStage, ...] = ()


def merging(
    symbols: str,
    ignore_merges: bool,
    pairs: tables.PairTable,
    words: tables.WordTable,
    neighbours: tables.NeighbourTable,
    lengths: NDArray[np.int32],
    **known: Any,
) -> CompiledModel:
    """The compiled form of byte-pair encoding, with ``symbols`` "bytes" or "characters"."""
    fields = {
        "pairs": pairs.slots,
        "pairs_mask": pairs.mask,
        "words": words.slots,
        "words_mask": words.mask,
        "word_text": words.pieces.text,
        "word_places": words.pieces.places,
        "word_state": words.state,
    }
    stages = (SeparateStage(neighbours, ignore_merges),)
    return CompiledModel(
        KernelKey("text.merge", symbols=symbols, whole=ignore_merges),
        text_merge.MergeRecord,
        text_merge.scratch_bytes,
        lengths,
        fields | known,
        stages,
    )


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
