"""The forward run of a backward pass, which a tape records, and the operations of a plan in reverse order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.passes import PatternTap, Tap, Watch
from pellucid.plan.plan import At, Fill, Operation, Plan, Vector
from pellucid.plan.points import Point, RowKind
from pellucid.runtime.batch import ForwardedEdits, Recorder
from pellucid.trace.traced_model import ModelWeights

NOTHING = -1  # the version of a buffer that no operation has written


class Version(NamedTuple):
    """The value of a ``buffer`` that operation ``writer`` has written."""

    buffer: str
    writer: int


class Versions:
    """The versions of the buffers that each operation of an unoptimized ``plan`` reads."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._read = plan, list[dict[str, Version]]()
        last = dict[str, int]()
        for number, op in enumerate(plan.operations):
            names = {*op.reads, *op.writes, *(value.buffer for value in op.fields.values() if isinstance(value, At))}
            self._read.append({name: Version(name, last.get(name, NOTHING)) for name in names})
            last |= dict.fromkeys(op.writes, number)

    def read(self, number: int, buffer: str) -> Version:
        return self._read[number][buffer]

    def rows(self, version: Version) -> RowKind:
        return self.plan.operations[version.writer].rows

    def width(self, version: Version) -> int:
        return self.plan.buffers[version.buffer].width


def version_of(point: Point, versions: Versions) -> Version:
    return Version(versions.plan.operations[point.operation].writes[point.write], point.operation)


class TapeNeeds(Struct, frozen=True):
    """The needs of a backward pass: ``values``, and the attentions whose ``patterns`` and ``scores`` it reads."""

    values: tuple[Version, ...]
    patterns: tuple[int, ...]
    scores: tuple[int, ...] = ()


class Tape(ForwardedEdits):
    """A recorder that records the values of ``needs`` for a sequence of ``tokens`` tokens, whose edits ``edits`` makes.

    The outputs are computed from position ``first_output`` on.
    """

    first_recorded: int | None = 0

    def __init__(
        self, versions: Versions, needs: TapeNeeds, tokens: int, first_output: int, edits: Recorder | None
    ) -> None:
        of_edits = edits.watch if edits is not None else Watch()
        assert isinstance(of_edits, Watch)
        super().__init__(edits, range(len(of_edits.edits)), range(len(of_edits.pattern_edits)))
        self.first_output = first_output
        self.rows: Mapping[RowKind, int] = {"tokens": tokens, "outputs": tokens - first_output}
        taps, self._columns, widths = (list[Tap](), dict[Version, tuple[RowKind, slice]](), dict[RowKind, int]())
        for version in needs.values:
            op, kind = versions.plan.operations[version.writer], versions.rows(version)
            index = op.writes.index(version.buffer)
            view = op.views[index]
            assert view is not None
            parts = view.parts if view.places else 1  # the parts of a token have rows of their own
            taps += [Tap(version.writer, 0, view.width, index, part) for part in range(parts)]
            first = widths.get(kind, 0)
            self._columns[version] = kind, slice(first, first + parts * view.width)
            widths[kind] = first + parts * view.width
        self._blocks = {kind: np.zeros((self.rows[kind], width), np.float32) for kind, width in widths.items()}
        patterns = [(number, raw) for raw, own in ((False, needs.patterns), (True, needs.scores)) for number in own]
        heads = {number: int(str(versions.plan.operations[number].fields["heads"])) for number, _ in patterns}
        self._recorded_patterns = {key: np.zeros((heads[key[0]], tokens, tokens), np.float32) for key in patterns}
        self._order = patterns
        self.watch = Watch(
            tuple(taps),
            tuple(PatternTap(number, 0, heads[number], raw, block) for block, (number, raw) in enumerate(patterns)),
            of_edits.edits,
            of_edits.pattern_edits,
        )

    @property
    def error(self) -> BaseException | None:
        return getattr(self._inner, "error", None)

    @property
    def first_changed(self) -> int | None:
        return self._inner.first_changed if self._inner is not None else None

    def value(self, version: Version) -> NDArray[np.float32]:
        kind, columns = self._columns[version]
        return self._blocks[kind][:, columns]

    def pattern(self, operation: int, *, raw: bool = False) -> NDArray[np.float32]:
        return self._recorded_patterns[operation, raw]

    def positions(self, start: int, stop: int) -> range:
        return range(start, stop)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        first = self.first_output if rows == "outputs" else 0
        self._blocks[rows][positions.start - first : positions.stop - first] = values  # type: ignore[index]

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        pattern = self._recorded_patterns[self._order[block]]
        pattern[:, positions.start : positions.stop, : rows.shape[2]] = rows.swapaxes(0, 1)


def tape_bytes(versions: Versions, needs: TapeNeeds, tokens: int, outputs: int) -> int:
    rows = {"tokens": tokens, "outputs": outputs}
    values = sum(rows[versions.rows(version)] * versions.width(version) for version in needs.values)
    heads = (int(str(versions.plan.operations[number].fields["heads"])) for number in (*needs.patterns, *needs.scores))
    return 4 * (values + sum(heads) * tokens * tokens)


def refuse_too_long(needed: int, budget: int, tokens: int) -> None:
    if needed > budget:
        raise InvalidRequest(
            f"budget={budget:,}: the backward pass of {tokens:,} tokens takes {needed:,} bytes: give a shorter prompt, "
            "or a larger budget"
        )


def fields_of(op: Operation, names: Iterable[str]) -> list[str]:
    """The buffers of some fields of an operation."""
    found = []
    for name in names:
        value = op.fields[name]
        assert isinstance(value, At)
        found.append(value.buffer)
    return found


# The operations of a plan in reverse order: the values that they read, and which of them carry gradients.

Rows = NDArray[np.float32]


class Values(Struct, frozen=True):
    """The inputs of a product: recorded ``values`` by field (of outputs: "out." and the field).

    ``patterns`` and ``scores`` of an attention have an array (H, T, T) for each sequence.

    ``sequences`` are the rows of each sequence; its tokens have the positions from 0 on. ``picked`` are the rows that
    the outputs are computed of.
    """

    plan: Plan
    weights: ModelWeights
    values: Mapping[str, Rows]
    sequences: Sequence[slice]
    picked: NDArray[np.int64]
    patterns: Sequence[Rows] = ()
    scores: Sequence[Rows] = ()
    angles: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    """The cosines and sines of rotary positions, (n, 1, pairs), which all products of a backward pass share."""
    gradients: Mapping[str, Rows] = {}
    """The gradients of all written buffers that have one, by buffer."""

    def longer_than(self, tokens: int) -> NDArray[np.int64]:
        """For each row, 1 if its sequence has more than ``tokens`` tokens, else 0. With 0 ``tokens`` all are 0."""
        sizes = [own.stop - own.start for own in self.sequences]
        return np.repeat([int(0 < tokens < size) for size in sizes], sizes)

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.concatenate([np.arange(own.stop - own.start) for own in self.sequences])


Product = Callable[[Operation, Rows, Values], Iterator[tuple[str, Rows]]]
"""Yields the names of fields, each with the gradient of the buffer that the field names."""


class KernelProduct(Struct, frozen=True):
    """A product, and the fields of the buffers that get a gradient (``passes``).

    It reads the values of ``inputs`` before the operation, and of ``outputs`` after it, and the ``choices`` of experts.

    Attention reads its ``patterns``, and has also the fields "k" and "v": keys and values in the cache.
    """

    product: Product
    passes: tuple[str, ...] = ("x",)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    patterns: bool = False
    choices: bool = False


def vector_of(weights: ModelWeights, value: Any, count: int) -> NDArray[np.float64]:
    if isinstance(value, Fill):
        return np.full(count, value.number)
    assert isinstance(value, Vector)
    return weights.values(value.slot).astype(np.float64).reshape(-1)[:count]


def number_of(op: Operation, name: str) -> float:
    value = op.fields[name]
    assert isinstance(value, (int, float))
    return float(value)


def size_of(op: Operation, name: str) -> int:
    return int(number_of(op, name))


NOBODY: Collection[int] = ()


class ReverseWalk:
    """The operations that carry gradients from the versions ``starts`` down to operation ``first``.

    ``product_of`` gives the product of an operation. Gradients stop at the versions ``cuts``. The products of the
    operations ``kept`` run even if nothing before them needs a gradient. Raises InvalidRequest if an operation has no
    product.
    """

    def __init__(
        self,
        versions: Versions,
        starts: Collection[Version],
        first: int,
        product_of: Callable[[Operation], KernelProduct],
        *,
        cuts: Collection[Version] = (),
        kept: Collection[int] = NOBODY,
    ) -> None:
        self.versions, self.products = versions, dict[int, KernelProduct]()
        self.first, self.last = first, max((start.writer for start in starts), default=first - 1)
        self._passes, self._reads = dict[int, Mapping[str, Version]](), dict[int, Mapping[str, Version]]()
        live, operations = set(starts), versions.plan.operations
        values, self._patterns, self._scores = dict[Version, None](), list[int](), list[int]()
        for number in range(self.last, first - 1, -1):
            op = operations[number]
            if not any(Version(name, number) in live for name in op.writes):
                continue
            if number == first and number not in kept:
                continue
            self.products[number] = product = product_of(op)
            self._passes[number] = self._named(number, product.passes)
            self._reads[number] = self._inputs(number, product)
            values |= dict.fromkeys(self._reads[number].values())
            if product.patterns:
                self._patterns.append(number)
                self._scores += [number] * bool(op.fields["softcap"])
            live |= {own for own in self._passes[number].values() if own not in cuts}
        if any(version.writer == NOTHING for version in values):
            raise InvalidRequest("a value that the backward pass reads is not computed by the plan")
        self._values = tuple(values)

    def needs(self, recorded: Iterable[Version] = ()) -> TapeNeeds:
        values = dict.fromkeys([*recorded, *self._values])
        return TapeNeeds(tuple(values), tuple(self._patterns), tuple(self._scores))

    def run(
        self,
        adjoints: Adjoints,
        last: int,
        taken: Callable[[int, Operation], Mapping[str, Rows]],
        values: Callable[[int, Mapping[str, Rows]], Values],
        beside: Callable[[int, str, Rows], object] = lambda number, name, gradient: None,
    ) -> None:
        """Go back from operation ``last``, and add the gradients of inputs to ``adjoints``.

        ``taken`` takes the gradients of the buffers that an operation writes from them, and ``values`` makes the input
        of its product. ``beside`` gets the gradients that a product yields for no input.
        """
        for number in range(last, self.first - 1, -1):
            op = self.versions.plan.operations[number]
            gradients = taken(number, op)
            if not gradients or number not in self.products:
                continue
            out = next(iter(gradients.values()))
            for name, gradient in self.products[number].product(op, out, values(number, gradients)):
                version = self._passes[number].get(name)
                if version is None:
                    beside(number, name, gradient)
                elif version.writer >= self.first:
                    adjoints.add(version, gradient)

    def _input_of(self, number: int, name: str) -> Version | None:
        """The version of a field's buffer before an operation; None if the field names no buffer.

        An attention has the fields "k" and "v" too: the keys and values that it reads from the cache.
        """
        op = self.versions.plan.operations[number]
        if isinstance(op.fields.get(name), At):
            return self.versions.read(number, fields_of(op, [name])[0])
        cache = next((buffer for buffer in op.reads if buffer.startswith("cache.")), None)
        if name not in ("k", "v") or cache is None:
            return None
        writer = self.versions.read(number, cache).writer
        return self.versions.read(writer, fields_of(self.versions.plan.operations[writer], [name])[0])

    def recorded(self, number: int, tapes: Sequence[Tape]) -> Mapping[str, Rows]:
        return {
            name: np.concatenate([tape.value(own) for tape in tapes]) if len(tapes) > 1 else tapes[0].value(own)
            for name, own in self._reads[number].items()
        }

    def _inputs(self, number: int, product: KernelProduct) -> dict[str, Version]:
        op = self.versions.plan.operations[number]
        found = self._named(number, product.inputs)
        found |= {f"out.{name}": Version(fields_of(op, [name])[0], number) for name in product.outputs}
        if product.choices:
            found["ids"] = self._choices(number)
        return found

    def _named(self, number: int, names: Iterable[str]) -> dict[str, Version]:
        versions = {name: self._input_of(number, name) for name in names}
        return {name: version for name, version in versions.items() if version is not None}

    def _choices(self, number: int) -> Version:
        """The experts that tokens have chosen, for a product with experts' matrices."""
        group = self.versions.read(number, "runs").writer
        return self.versions.read(group, fields_of(self.versions.plan.operations[group], ["ids"])[0])


class Adjoints:
    """The gradients (n, width) of versions that the pass has not reached yet."""

    def __init__(self, versions: Versions) -> None:
        self._versions, self._found = versions, dict[Version, Rows]()

    def add(self, version: Version, gradient: Rows) -> None:
        """Add to the gradient of a version. Missing columns are 0, and further columns are left out."""
        width = self._versions.width(version)
        before = self._found.get(version)
        if before is None:
            if gradient.shape[1] == width and gradient.flags.owndata:
                self._found[version] = gradient
                return
            self._found[version] = before = np.zeros((len(gradient), width), np.float32)
        elif not before.flags.writeable:
            self._found[version] = before = before.copy()
        before[:, : gradient.shape[1]] += gradient[:, :width]

    def take(self, version: Version) -> Rows | None:
        return self._found.pop(version, None)
