"""A trace: the values that were recorded while requests ran, as arrays.

with llm.trace("blocks.*.residual", "blocks.5.attention.pattern[heads=0,3]") as t:
    llm.generate("The capital of France is", max_new_tokens=8)
t["blocks.5.attention.pattern"]     # (B, H, T, T') float32
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.edits import EditOf
from pellucid.trace.points import Point
from pellucid.trace.recorder import SequenceProbe
from pellucid.trace.recording import Recording
from pellucid.trace.selection import Selected, select
from pellucid.trace.stream import TraceStream
from pellucid.util.checks import whole

BUDGET = 1 << 30  # bytes
MOST_BUDGET = 1 << 50
MOST_SHOWN, MOST_ROWS = 8, 40  # patterns or sequences, and rows, of a display


class SequenceTrace:
    """What was recorded of one sequence: ``trace["blocks.3.residual"]`` is (T, ...).

    ``ids`` are the tokens that it has read, ``pieces`` their texts; row t of an array is that of token t, or of the
    first selected one. The last token of a generated text is not read.
    """

    def __init__(self, trace: Trace, probe: SequenceProbe) -> None:
        self._trace, self._probe = trace, probe

    def __repr__(self) -> str:
        return f"SequenceTrace({len(self):,} tokens, {len(self._trace.selected):,} points)"

    def _repr_html_(self) -> str:
        """The attention patterns as heat maps, and the sizes of what else was recorded."""
        import html

        from pellucid.util.display import heat, table

        parts, rows = [f"<p>{html.escape(repr(self))}</p>"], []
        for one in self._trace.selected:
            values = self[one.name]
            if one.point.kind == "pattern" and len(parts) <= MOST_SHOWN:
                for head, pattern in zip(one.heads, values):
                    first = min(one.tokens.start, len(self))
                    label, queries = f"{one.name}, head {head}", self.pieces[first : first + len(pattern)]
                    parts.append(
                        f"<h4>{label}</h4>{heat(pattern, queries, self.pieces[: pattern.shape[1]], label)}"
                    )
            else:
                rows.append([one.name, str(values.shape), one.point.about])
        return "".join([*parts, table(["point", "shape", "what it is"], rows[:MOST_ROWS])])

    def __len__(self) -> int:
        """How many tokens were read while it was recorded."""
        return self._probe.count

    @property
    def ids(self) -> list[int]:
        """The tokens."""
        return list(self._probe.tokens())

    @property
    def pieces(self) -> list[str]:
        """The text of each token."""
        return [self._trace.piece(token) for token in self.ids]

    @property
    def dropped(self) -> int:
        """How many blocks of values did not fit into the budget."""
        return self._probe.dropped

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of a point, (T, ...); of a pattern (H, T, T'). Raises InvalidRequest if it was not selected."""
        return self._probe.array(self._trace.one(name))


class Trace(Mapping[str, NDArray[Any]]):
    """Arrays by the names of points, (B, T, ...): a row for each sequence that ran, in the order in which they began.

    Sequences that are shorter than the longest are filled up with NaN (chosen experts with -1). ``sequences`` has each
    of them by itself. ``dropped`` counts what did not fit into the ``budget`` of bytes.
    """

    def __init__(
        self,
        points: Mapping[str, Point],
        wanted: Sequence[str],
        edits: Sequence[EditOf] = (),
        budget: int = BUDGET,
        piece: Callable[[int], str] = str,
    ) -> None:
        self.budget = whole("budget", budget, 1, MOST_BUDGET)
        self.selected = select(points, wanted)
        self.edits, self._points = list(edits), points
        self._recording = Recording(self.selected, bound_edits(points, edits))
        self._by_name: dict[str, Selected] = {}
        for one in self.selected:
            if self._by_name.setdefault(one.name, one) != one:
                raise InvalidRequest(
                    f"point={brief(one.name)}: two parts of it are selected: select one that has both"
                )
        self.sequences: list[SequenceTrace] = []
        self.stream: TraceStream | None = None
        """Where what is recorded is told while it runs."""
        self._begun = 0
        self.nbytes = self._reserved = 0
        self._lock, self.piece = threading.Lock(), piece

    def __repr__(self) -> str:
        missing = f", {self.dropped:,} blocks dropped" if self.dropped else ""
        return (
            f"Trace({len(self.selected):,} points, {len(self.sequences):,} sequences, {self.nbytes / 1e6:,.1f} of "
            f"{self.budget / 1e6:,.1f} MB{missing})"
        )

    def _repr_html_(self) -> str:
        return "".join(sequence._repr_html_() for sequence in self.sequences[:MOST_SHOWN])

    def __bool__(self) -> bool:
        return True  # one with edits alone, and no points, is a trace

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def get(self, name: str, default: Any = None) -> Any:
        """The values of a point, or the default for one that was not selected."""
        if name not in self._by_name:
            return default
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The values of a point. Raises InvalidRequest if it was not selected, or nothing ran."""
        one = self.one(name)
        if not self.sequences:
            raise InvalidRequest(f"point={brief(name)}: nothing has run while it was traced")
        return _stacked([sequence[name] for sequence in self.sequences], one)

    @property
    def dropped(self) -> int:
        """How many blocks of values did not fit into the budget."""
        return sum(sequence.dropped for sequence in self.sequences)

    def one(self, name: str) -> Selected:
        """The part of a point that was selected. Raises InvalidRequest."""
        if isinstance(name, str) and name not in self._by_name:
            name = self._selected_as(name)
        if name not in self._by_name:
            some = ", ".join(list(self._by_name)[:5])
            raise InvalidRequest(f"point={brief(name)}: it is not in this trace, which has {some} ...")
        return self._by_name[name]

    def _selected_as(self, name: str) -> str:
        """The point that a name with a bracket or a negative number stands for, if it stands for one."""
        found = select(self._points, [name])
        return found[0].name if len(found) == 1 else name

    def begin(self, tokens: int, count: int = 1) -> list[SequenceProbe]:
        """Probes for ``count`` sequences that go on after the same ``tokens`` tokens.

        Raises:
            InvalidRequest: these do not fit into the budget.
        """
        return self._begin(self._recording, tokens, count)

    def fork(self, tokens: int, parent: SequenceProbe | None = None) -> SequenceProbe:
        """As in ``Watching``."""
        return self._fork(self._recording, tokens, parent)

    def keep(self, probe: SequenceProbe) -> None:
        """As in ``Watching``."""
        with self._lock:
            self.sequences.append(SequenceTrace(self, probe))

    def edited(self, edits: Sequence[EditOf]) -> EditedTrace:
        """This trace for a request that has ``edits`` too. Raises InvalidRequest if one does not fit its point."""
        bound = bound_edits(self._points, [*self.edits, *edits])
        return EditedTrace(self, Recording(self.selected, bound))

    def _begin(self, recording: Recording, tokens: int, count: int) -> list[SequenceProbe]:
        self._refuse_large(recording, tokens)
        made = [SequenceProbe(recording, self._took, self._teller()) for _ in range(count)]
        with self._lock:
            self.sequences += [SequenceTrace(self, probe) for probe in made]
        return made

    def _fork(self, recording: Recording, tokens: int, parent: SequenceProbe | None) -> SequenceProbe:
        self._refuse_large(recording, tokens)
        made = SequenceProbe(recording, self._took)
        if parent is not None:
            made.follow(parent)
        return made

    def _teller(self) -> Callable[..., object] | None:
        """What a sequence's probe tells of its blocks; None if nobody listens."""
        if self.stream is None:
            return None
        self._begun += 1
        return partial(self.stream.put, self._begun - 1)

    def _refuse_large(self, recording: Recording, tokens: int) -> None:
        needed = recording.bytes_for(tokens)
        with self._lock:
            free = self.budget - max(self.nbytes, self._reserved)
            if needed <= free:
                self._reserved += needed
        if needed > free:
            raise InvalidRequest(
                f"budget={self.budget:,}: a trace of {tokens:,} tokens takes {needed:,} bytes, and {free:,} are left: "
                "trace fewer points, heads or tokens, or give a larger budget"
            )

    @property
    def watches_chain(self) -> bool:
        """Whether it records what the sampler's chain does."""
        return self._recording.watches_chain

    @property
    def first_output(self) -> int | None:
        """The first position whose logits are recorded, or what leads to them; None: of none."""
        return self._recording.first_output

    def _took(self, nbytes: int) -> bool:
        with self._lock:
            if self.nbytes + nbytes > self.budget:
                return False
            self.nbytes += nbytes
            return True


class EditedTrace:
    """A trace for a request with edits of its own."""

    def __init__(self, trace: Trace, recording: Recording) -> None:
        self._trace, self._recording = trace, recording

    @property
    def watches_chain(self) -> bool:
        """As in ``Trace``."""
        return self._recording.watches_chain

    @property
    def first_output(self) -> int | None:
        """As in ``Trace``."""
        return self._recording.first_output

    def begin(self, tokens: int, count: int = 1) -> list[SequenceProbe]:
        """As in ``Trace``."""
        return self._trace._begin(self._recording, tokens, count)

    def fork(self, tokens: int, parent: SequenceProbe | None = None) -> SequenceProbe:
        """As in ``Trace``."""
        return self._trace._fork(self._recording, tokens, parent)

    def keep(self, probe: SequenceProbe) -> None:
        """As in ``Trace``."""
        self._trace.keep(probe)


def bound_edits(points: Mapping[str, Point], edits: Sequence[EditOf]) -> list[tuple[Selected, EditOf]]:
    """Each edit with the parts that it changes.

    Raises:
        InvalidRequest: something is no edit, or changes no point.
    """
    for edit in edits:
        if not isinstance(edit, EditOf):
            raise InvalidRequest(f"edit={brief(edit)}: must be made by ablate, scale, add, replace or call")
    return [(one, edit) for edit in edits for one in select(points, [edit.where])]


def _stacked(parts: Sequence[NDArray[Any]], selected: Selected) -> NDArray[Any]:
    """Arrays of sequences as one, filled up to the longest."""
    shape = tuple(max(sizes) for sizes in zip(*(part.shape for part in parts)))
    filling: Any = np.nan if selected.point.dtype == "float32" else -1
    made = np.full((len(parts), *shape), filling, parts[0].dtype)
    for row, part in zip(made, parts):
        row[tuple(slice(0, size) for size in part.shape)] = part
    return made
