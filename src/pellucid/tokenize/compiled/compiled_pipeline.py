"""Encoding by compiled code: texts to ids through all stages of a tokenizer, without the GIL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import Record
from pellucid.kernels.text import cut as text_cut
from pellucid.kernels.text import merge as text_merge
from pellucid.kernels.text import normalize as text_normalize
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import rewrite as text_rewrite
from pellucid.kernels.text import split as text_split
from pellucid.runtime.executor import Call
from pellucid.runtime.memory import address
from pellucid.tokenize.compiled import tables
from pellucid.tokenize.compiled.rewrite_table import FormTable, RewriteTable
from pellucid.tokenize.compiled.workspace import MAX_BYTES, MAX_KEPT_BYTES, TextBatch, Workspace, WorkspacePool
from pellucid.tokenize.patterns.automaton import Automaton
from pellucid.tokenize.patterns.matcher import too_slow
from pellucid.tokenize.stages.aligned import GROWTH_EXTRA

# The stages of a tokenizer as compiled code: each stage cuts spans of texts into smaller spans, or changes the texts.
#
# The results equal the results of ``stages/normalize.py`` and ``stages/pretokenize.py``,
# which run in Python. A stage is a kernel with the fields of its record.


class CompiledStage(Protocol):
    """Runs a stage on texts, in place; returns False if it gave up and Python must run the stage."""

    def __call__(self, batch: TextBatch) -> bool: ...


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


# Maximum growth of a span in a compiled stage: output bytes for each input byte. If a span grows more, Python runs the
# stage.
MAX_GROWTH = 4


class RewriteStage:
    """Changes texts with ``_kernel``.

    A byte becomes at most ``_growth`` bytes, and each span gets at most ``_prefix_length`` more. The stage gives up if
    a span may exceed the limit of ``aligned.check_growth``.
    """

    _kernel: Call
    _growth: int
    _prefix_length = 0

    def __call__(self, batch: TextBatch) -> bool:
        workspace, side, text_side = batch.workspace, 1 - batch.side, 1 - batch.text_side
        length = self._growth * batch.length + (self._prefix_length + 1) * batch.piece_count
        if length >= text_pieces.PART or self._prefix_length > GROWTH_EXTRA:
            return False
        text = workspace.array("text", text_side, length + text_pieces.PADDING, np.uint8)
        pieces = workspace.array("pieces", side, 2 * batch.piece_count, np.int32)
        ends = workspace.array("ends", text_side, batch.text_count, np.int32)
        self._kernel(
            text=batch.text.address,
            pieces=batch.pieces.address,
            count=batch.piece_count,
            ends=batch.ends.address,
            texts=batch.text_count,
            out=text.address,
            out_pieces=pieces.address,
            out_ends=ends.address,
            status=workspace.result.address,
            **self._fields(workspace),
        )
        if int(workspace.result.array[0]) != text_rewrite.DONE:
            return False
        before = batch.sizes()
        batch.text, batch.pieces, batch.ends = text, pieces, ends
        batch.side, batch.text_side = side, text_side
        batch.length = int(ends.array[batch.text_count - 1])
        return not np.any(batch.sizes() > MAX_GROWTH * before + GROWTH_EXTRA)

    def _fields(self, workspace: Workspace) -> dict[str, int]:
        """Further fields for each call of the kernel."""
        return {}


class ReplaceStage(RewriteStage):
    """Replaces characters."""

    def __init__(self, change: RewriteTable) -> None:
        self._growth, self._prefix_length = change.growth, len(change.prefix)
        rules, rule_fields = change.rules, dict[str, Any]()
        if rules is not None:
            tree = tables.PieceTree.of([key.encode() for key in rules.replaced])
            ends = np.where(tree.ids >= 0, np.append(rules.places, 0)[tree.ids], -1).astype(np.int32)
            rule_fields = {"flags": rules.flags, "slots": tree.slots, "rules": ends}
        self._kernel = Call(
            KernelKey("text.rewrite", rules="none" if rules is None else rules.which),
            text_rewrite.RewriteRecord,
            **rule_fields,
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


class NormalizeStage(RewriteStage):
    """Converts texts to a Unicode normalization form."""

    def __init__(self, table: FormTable) -> None:
        self._growth = table.growth
        self._kernel = Call(
            KernelKey("text.normalize"),
            text_normalize.NormalizeRecord,
            properties=table.properties,
            places=table.places,
            written=table.written,
            composes=int(table.composes),
            pairs=table.pairs.slots,
            pairs_mask=table.pairs.mask,
        )

    def _fields(self, workspace: Workspace) -> dict[str, int]:
        return {"scratch": workspace.array("parts", 0, text_normalize.MAX_PARTS, np.int32).address}


# The model stage as compiled code: a kernel that turns pre-tokens into ids, and the fields of its record.


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


# Encoding by compiled code: texts to ids through all stages of a tokenizer, without the GIL.
#
# In: texts. Out: their ids, equal to the ids from the Python stages in ``stages/`` and ``kinds/``, but faster. A stage
# is a kernel with the fields of its record. It turns spans of texts (``pieces``) into other spans. Many texts are
# concatenated and pass through a stage together.
#
# A call changes only its workspace (``workspace.py``): buffers, and caches of the ids of pre-tokens.

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
