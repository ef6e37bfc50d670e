"""The stages of a tokenizer as compiled code: each stage cuts spans of texts into smaller spans, or changes the texts.

The results equal the results of ``stages/added.py``, ``stages/normalize.py`` and ``stages/pretokenize.py``, which run
in Python. A stage is a kernel with the fields of its record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.text import added as text_added
from pellucid.kernels.text import apart as text_apart
from pellucid.kernels.text import normalize as text_normalize
from pellucid.kernels.text import pieces as text_pieces
from pellucid.kernels.text import rewrite as text_rewrite
from pellucid.kernels.text import split as text_split
from pellucid.runtime.call import Call
from pellucid.tokenize.compiled import tables
from pellucid.tokenize.compiled.form_tables import FormTable
from pellucid.tokenize.compiled.rewrite_table import RewriteTable
from pellucid.tokenize.compiled.texts import Room, Texts
from pellucid.tokenize.patterns.automaton import Automaton
from pellucid.tokenize.patterns.matcher import too_slow
from pellucid.tokenize.stages.aligned import MORE


class CompiledStage(Protocol):
    """Runs a stage on texts, in place; returns False if it gave up and Python must run the stage."""

    def __call__(self, texts: Texts) -> bool: ...


class Cut:
    """Cuts spans into smaller spans with ``_kernel``; the text stays the same."""

    _kernel: Call

    def __call__(self, texts: Texts) -> bool:
        self._cut(texts)
        return True

    def _cut(self, texts: Texts, **more: int) -> None:
        """Call the kernel, with ``more`` fields, and store the new spans in ``texts``."""
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
"""Maximum steps of a pattern, per call and per byte of text: far more than it takes to read a text a few times."""


class Cutting(Cut):
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

    def __call__(self, texts: Texts) -> bool:
        steps = STEPS + STEPS_A_BYTE * texts.length
        self._cut(texts, most_steps=steps)
        if texts.count < 0:
            raise too_slow(self._pattern, f"{steps:,} steps for {texts.length:,} bytes")
        return True


class Adding(Cut):
    """Cuts out added tokens; ``emitted`` (n,) int32 has the id of each token, or -1 if it stays text."""

    def __init__(self, tokens: Sequence[bytes], emitted: NDArray[np.int32]) -> None:
        tree, starts = tables.PieceTree.of(tokens), np.zeros(256, np.uint8)
        starts[[token[0] for token in tokens]] = 1
        known = {
            "starts": starts,
            "slots": tree.slots,
            "ids": tree.ids,
            "emitted": emitted,
        }
        self._kernel = Call(KernelKey("text.added"), text_added.AddedRecord, **known)


class Separating(Cut):
    """Cuts spans between characters that are adjacent in no piece; ``marked`` sets the flag PART on each part."""

    def __init__(self, neighbours: tables.NeighbourTable, marked: bool) -> None:
        pairs = neighbours.pairs
        table, mask = tables.slots(len(pairs), 1)
        fields = {"slots": table, "mask": mask}
        Call(
            KernelKey("text.neighbours"), text_apart.NeighboursRecord, pairs=pairs, count=len(pairs), **fields
        )()
        common, together = neighbours.most_common()
        fields |= {"common": common, "together": together, "flags": neighbours.flags, "marked": int(marked)}
        self._kernel = Call(
            KernelKey("text.apart", everywhere=neighbours.everywhere), text_apart.ApartRecord, **fields
        )


GROWTH = 4  # output bytes per byte of one stage; with more, Python runs the stage and counts characters


class Changing:
    """Changes texts with ``_kernel``.

    A byte becomes at most ``_growth`` bytes, and each span gets at most ``_ahead`` more. The stage gives up if a span
    may exceed the limit of ``aligned.check_growth``.
    """

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
        """Further fields for each call of the kernel."""
        return {}


class Rewriting(Changing):
    """Replaces characters."""

    def __init__(self, change: RewriteTable) -> None:
        self._growth, self._ahead = change.growth, len(change.prefix)
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


class Normalizing(Changing):
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

    def _more(self, room: Room) -> dict[str, int]:
        return {"scratch": room.array("parts", 0, text_normalize.MAX_PARTS, np.int32)[1]}
