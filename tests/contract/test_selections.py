"""Selections are NumPy indexing of the whole array, on each axis, for recordings and for each kind of edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.tiny import OF_FAMILY, model_runner

from pellucid.engine.model_runner import ModelRunner
from pellucid.plan.points import Point
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.edits import Edit, ablate, add, call, mask, replace, scale
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.trace.trace import Trace

LENGTH = 11
MODELS = ("llama", "qwen3_moe", "deepseek_v2", "gemma3n", "bert")  # heads, experts, padded heads, streams, an encoder


class Plain(NamedTuple):
    """A model with all values of a run without edits."""

    runner: ModelRunner
    values: Trace

    @property
    def points(self) -> list[Point]:
        last = f"blocks.{len(self.runner.spec.blocks) - 1}."
        return [
            point
            for name, point in self.runner.plan.points.items()
            if point.kind in ("value", "pattern", "scores") and point.dtype == "float32"
            if not name.startswith("blocks.") or name.startswith(last)
        ]


@pytest.fixture(scope="module", params=MODELS)
def plain(request: pytest.FixtureRequest) -> Iterator[Plain]:
    with model_runner(OF_FAMILY[request.param], threads=2) as runner:
        trace, recorder = traced(runner, "**")
        run(runner, recorder)
        yield Plain(runner, trace)


def traced(runner: ModelRunner, *wanted: str, edits: Sequence[Edit] = ()) -> tuple[Trace, SequenceRecorder]:
    trace = Trace(runner.plan.points, wanted, edits)
    watching = trace.watching()
    (recorder,) = watching.begin(range(LENGTH))
    watching.keep(recorder)
    recorder.tokens = lambda: range(LENGTH)
    return trace, recorder


def run(runner: ModelRunner, recorder: SequenceRecorder, *, cut: bool = False) -> bytes:
    """The outputs of a text, whose prefill runs in one step or is ``cut``."""
    ids = np.random.default_rng(0).integers(0, runner.spec.embedding.vocabulary, LENGTH).tolist()
    table, outputs, first = BlockTable(), [], 0
    for count in (4, 1, LENGTH - 5) if cut and runner.spec.generates else (LENGTH,):
        wanted = count if runner.spec.output_rows == "outputs" else 0
        outputs.append(runner.forward([Chunk(table, ids[first : first + count], wanted, recorder=recorder)]))
        first += count
    runner.cache.truncate(table, 0)
    assert recorder.error is None, recorder.error
    return b"".join(part.tobytes() for part in outputs)


@st.composite
def listed(draw: st.DrawFn, size: int) -> tuple[str, list[int]]:
    """A list as a user writes it, and its numbers, which are below ``size``."""
    texts, numbers = list[str](), list[int]()
    ends = st.one_of(st.none(), st.integers(-size - 2, size + 2))
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            number = draw(st.integers(-size, size - 1))
            text, own = str(number), [number % size]
        else:
            span = slice(draw(ends), draw(ends), draw(st.one_of(st.none(), st.integers(1, 4))))
            parts = ("" if part is None else str(part) for part in (span.start, span.stop, span.step))
            text, own = ":".join(parts), np.arange(size)[span].tolist()
        if own and not set(own) & set(numbers):
            texts.append(text)
            numbers += own
    assume(numbers)
    return ",".join(texts), numbers


class Part(NamedTuple):
    """A selected part: its text, and the numbers on each axis of the point's whole array (T, ...) or (H, T, T')."""

    where: str
    point: Point
    axes: tuple[list[int], ...]

    @property
    def tokens(self) -> list[int]:
        return self.axes[1 if self.point.kind in ("pattern", "scores") else 0]

    @property
    def has_effect(self) -> bool:
        """True if a selected token of a pattern sees a selected key. An edit without effect is refused."""
        mask_of = self.point.mask
        return mask_of is None or any(key in mask_of.seen(token) for token in self.tokens for key in self.axes[2])

    @property
    def others(self) -> tuple[NDArray[np.intp], ...]:
        """The index of the part in the values of one token."""
        pattern = self.point.kind in ("pattern", "scores")
        return np.ix_(*(self.axes[::2] if pattern else self.axes[1:]))


@st.composite
def parts(draw: st.DrawFn, points: Sequence[Point]) -> Part:
    point = draw(st.sampled_from(points))
    sizes = {"tokens": LENGTH}
    if point.rows == "sequences":
        sizes = {}
    if point.heads:
        sizes["heads"] = point.view.parts
    sizes["keys" if point.kind in ("pattern", "scores") else "dims"] = (
        LENGTH if point.kind in ("pattern", "scores") else point.view.count
    )
    chosen = {key: draw(listed(size)) for key, size in sizes.items() if draw(st.booleans())}
    inside = "; ".join(f"{key}={text}" for key, (text, _) in chosen.items())
    numbers = {key: chosen[key][1] if key in chosen else list(range(size)) for key, size in sizes.items()}
    numbers.setdefault("tokens", [0])
    order = ("heads", "tokens", "keys", "dims") if "keys" in sizes else ("tokens", "heads", "dims")
    axes = tuple(numbers[key] for key in order if key in numbers)
    return Part(f"{point.name}[{inside}]" if inside else point.name, point, axes)


@settings(max_examples=60)
@given(data=st.data())
def test_a_recording_is_an_index(plain: Plain, data: st.DataObject) -> None:
    part = data.draw(parts(plain.points))
    trace, recorder = traced(plain.runner, part.where)
    run(plain.runner, recorder, cut=data.draw(st.booleans()))
    expected = plain.values[part.point.name][0]
    assert np.array_equal(trace[part.where][0], expected[np.ix_(*part.axes)]), part
    for position in range(LENGTH if part.point.rows != "sequences" else 0):
        if position in part.tokens:
            row = expected[:, position] if part.point.kind in ("pattern", "scores") else expected[position]
            assert np.array_equal(trace.sequences[0].at(part.where, position), row[part.others])


class Change(NamedTuple):
    """x becomes ``factor`` * x + ``values``, which have a row for each selected token, or one row for all."""

    factor: float
    values: NDArray[np.float32] | None

    def of(self, x: NDArray[np.float32], row: int) -> NDArray[np.float32]:
        """The new values of a part at one token, the selected token number ``row``."""
        new = x * np.float32(self.factor) if self.factor else np.zeros_like(x)
        return new if self.values is None else new + self.values[row if len(self.values) > 1 else 0]

    def of_part(self, part: Part, x: NDArray[np.float32], context: Any) -> NDArray[np.float32]:
        """The function of the part."""
        rows = (part.tokens.index(position) for position in context.positions)
        return np.array([self.of(values, row) for values, row in zip(x, rows)])

    def of_whole(self, part: Part, x: NDArray[np.float32], context: Any) -> NDArray[np.float32]:
        """The function of the whole point that changes the part. A step's pattern may lack its last keys."""
        whole, (*first, last) = x.copy(), part.others
        index = (*first, last[..., last.reshape(-1) < x.shape[-1]])
        for values, position in zip(whole, context.positions.tolist()):
            if position in part.tokens:
                values[index] = self.of(values[index], part.tokens.index(position))
        return whole


@st.composite
def edits_of(draw: st.DrawFn, part: Part) -> tuple[Edit, Change]:
    """A static edit of a part, and what it does."""
    where, kind = part.where, part.point.kind
    if kind == "scores" and draw(st.booleans()):
        return mask(where), Change(0.0, np.float32(-np.inf).reshape(1))
    if kind != "value" or draw(st.booleans()):
        return scale(where, 0.5), Change(0.5, None)
    shape = tuple(len(axis) for axis in part.axes)
    values = np.random.default_rng(len(where)).standard_normal(shape, np.float32)
    make = draw(st.sampled_from((replace, ablate, add)))
    if draw(st.booleans()):
        values = values[:1]
    return make(where, values[0] if len(values) == 1 else values), Change(float(make is add), values)


@settings(max_examples=60)
@given(data=st.data())
def test_an_edit_changes_an_index(plain: Plain, data: st.DataObject) -> None:
    part = data.draw(parts(plain.points))
    edit, change = data.draw(edits_of(part))
    assume(part.has_effect)
    name, cut = part.point.name, data.draw(st.booleans())
    whole = call(name, lambda x, context: change.of_whole(part, x, context))
    of_part = call(part.where, lambda x, context: change.of_part(part, x, context))
    found = []
    for made in (whole, edit, of_part):
        trace, recorder = traced(plain.runner, name, edits=[made])
        outputs = run(plain.runner, recorder, cut=cut)
        found.append((trace[name].tobytes(), outputs))
    assert found[1] == found[0], part
    assert found[2] == found[0], part


@settings(max_examples=60)
@given(data=st.data())
def test_edits_of_an_attention_compose(plain: Plain, data: st.DataObject) -> None:
    """Scores and patterns, functions and static edits, of the same heads and of different heads."""
    *_, pattern = (point.name for point in plain.points if point.kind == "pattern")
    scores = f"{pattern.removesuffix('.pattern')}.scores"
    cut = data.draw(st.booleans())
    of: dict[str, list[tuple[Part, Change]]] = {scores: [], pattern: []}
    edits = list[Edit]()
    for _ in range(data.draw(st.integers(2, 4))):
        name = data.draw(st.sampled_from((scores, pattern)))
        part = data.draw(parts([plain.runner.plan.points[name]]))
        edit, change = data.draw(edits_of(part))
        assume(part.has_effect)
        if data.draw(st.booleans()):
            edit = call(part.where, partial(change.of_part, part))
        edits.append(edit)
        of[name].append((part, change))

    def whole(name: str, x: NDArray[np.float32], context: Any) -> NDArray[np.float32]:
        for part, change in of[name]:
            x = change.of_whole(part, x, context)
        return x

    heads = f"{pattern.removesuffix('.pattern')}.heads"
    after, recorder = traced(plain.runner, scores, pattern, heads, edits=edits)
    run(plain.runner, recorder, cut=cut)
    context = SimpleNamespace(positions=np.arange(LENGTH))

    def expected(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return whole(name, x[0].swapaxes(0, 1), context).swapaxes(0, 1)[None]

    of_scores, recorder = traced(plain.runner, scores, pattern, edits=[call(scores, partial(whole, scores))])
    run(plain.runner, recorder, cut=cut)
    assert np.array_equal(after[scores], expected(scores, plain.values[scores]))
    assert np.array_equal(after[scores], of_scores[scores])
    assert np.array_equal(after[pattern], expected(pattern, of_scores[pattern]))
    pinned, recorder = traced(plain.runner, heads, edits=[replace(pattern, after[pattern])])
    run(plain.runner, recorder, cut=cut)
    most = np.abs(pinned[heads]).max()
    np.testing.assert_allclose(after[heads], pinned[heads], atol=1e-5 * max(most, 1e-3))
