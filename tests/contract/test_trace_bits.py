"""Traces are exact, for the tiny models of every family.

A trace changes no bit of the output and records the same bits with any chunks. Replacing a value by the recorded value
changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny import OF_FAMILY, TINY, model_runner

from pellucid.engine.model_runner import ModelRunner
from pellucid.plan.points import Point
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.executor import ThreadTuner
from pellucid.trace.edits import Edit, ablate, add, call, mask, replace, scale
from pellucid.trace.sequence_recorder import SequenceRecorder
from pellucid.trace.trace import Trace

LENGTH = 37
MODELS = {**TINY, **OF_FAMILY}
CASES = [(name, 24) for name in sorted(MODELS)] + [
    (name, 8) for name in ("llama", "qwen2_moe", "gemma2", "qwen3_next", "albert", "mpnet")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def runner(request: pytest.FixtureRequest):
    name, activation_bits = request.param
    with model_runner(MODELS[name], threads=2, activation_bits=activation_bits) as found:
        yield found


def ids_of(runner: ModelRunner, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, runner.spec.embedding.vocabulary, LENGTH).tolist()


def run(
    runner: ModelRunner, ids: Sequence[int], recorder: SequenceRecorder | None = None, chunks: Sequence[int] = (LENGTH,)
) -> NDArray[np.float32]:
    """Outputs of all tokens of a text whose prefill runs in chunks."""
    table, outputs, first = BlockTable(), [], 0
    for count in chunks:
        part = ids[first : first + count]
        wanted = count if runner.spec.output_rows == "outputs" else 0
        outputs.append(runner.forward([Chunk(table, part, wanted, recorder=recorder)]))
        first += count
    runner.cache.truncate(table, 0)
    return np.concatenate(outputs)


def traced(runner: ModelRunner, *wanted: str, edits: Sequence[Edit] = ()) -> tuple[Trace, SequenceRecorder]:
    trace = Trace(runner.plan.points, wanted, edits)
    watching = trace.watching()
    (recorder,) = watching.begin(range(LENGTH))
    watching.keep(recorder)
    recorder.tokens = lambda: range(LENGTH)
    return trace, recorder


def values_of(runner: ModelRunner) -> dict[str, Point]:
    return {
        name: point for name, point in runner.plan.points.items() if point.kind == "value" and point.dtype == "float32"
    }


def test_a_trace_changes_no_bit_and_neither_do_its_values(runner: ModelRunner) -> None:
    ids = ids_of(runner)
    plain = run(runner, ids)
    trace, recorder = traced(runner, "**")
    assert run(runner, ids, recorder).tobytes() == plain.tobytes()
    assert not trace.dropped
    whole = {name: trace[name] for name in trace}
    for name, values in whole.items():
        if runner.plan.points[name].kind == "state":  # after the only step
            assert not np.isnan(values[:, -1]).any(), name
        else:
            assert not np.isnan(values).any(), name
    values = values_of(runner)
    _, recorder = traced(runner, edits=[replace(name, whole[name]) for name in values])
    assert run(runner, ids, recorder).tobytes() == plain.tobytes()
    if runner.spec.head:
        last = whole["project.logits"][0]
        assert last.tobytes() == plain.tobytes()
    else:
        last = whole[next(reversed(runner.plan.points))]
        assert np.array_equal(last.reshape(plain.shape), plain)


def test_every_point_alone_can_be_put_back(runner: ModelRunner) -> None:
    ids, (_, block) = ids_of(runner), (0, len(runner.spec.blocks) - 1)
    plain = run(runner, ids)
    own = [name for name in values_of(runner) if not name.startswith("blocks.") or name.startswith(f"blocks.{block}.")]
    trace, recorder = traced(runner, *own)
    run(runner, ids, recorder)
    for name in own:
        _, recorder = traced(runner, edits=[replace(name, trace[name])])
        assert run(runner, ids, recorder).tobytes() == plain.tobytes(), name


def test_patterns_can_be_put_back_and_pinned(runner: ModelRunner) -> None:
    names = [name for name, point in runner.plan.points.items() if point.kind == "pattern"]
    if not names:
        pytest.skip("no attention")
    ids = ids_of(runner)
    plain = run(runner, ids)
    trace, recorder = traced(runner, *names)
    run(runner, ids, recorder)
    _, recorder = traced(runner, *names, edits=[replace(name, trace[name]) for name in names])
    assert run(runner, ids, recorder).tobytes() == plain.tobytes()
    name = names[-1]
    pinned = np.zeros(LENGTH, np.float32)
    pinned[0] = 1.0
    before, recorder = traced(runner, name)
    changed = run(runner, ids, recorder)
    after, recorder = traced(runner, name, edits=[replace(f"{name}[heads=0; tokens=3:6]", pinned)])
    changed = run(runner, ids, recorder)
    assert changed.tobytes() != plain.tobytes()
    seen = after[name][0, 0, 3:6] > 0
    assert np.array_equal(seen.argmax(-1), [0, 0, 0])
    assert np.array_equal(after[name][0, :, 6:], before[name][0, :, 6:])
    for chunks in ([1] * LENGTH, [4, 33]):
        if runner.spec.generates:
            _, recorder = traced(runner, edits=[replace(f"{name}[heads=0; tokens=3:6]", pinned)])
            assert run(runner, ids, recorder, chunks).tobytes() == changed.tobytes()


def test_masked_keys_leave_a_softmax_of_the_other_keys(runner: ModelRunner) -> None:
    names = [name.removesuffix(".pattern") for name in runner.plan.points if name.endswith(".pattern")]
    if not names:
        pytest.skip("no attention")
    ids, name = ids_of(runner), names[-1]
    heads = runner.plan.points[f"{name}.pattern"].view.parts
    wanted = (f"{name}.scores", f"{name}.pattern", f"{name}.heads")
    plain, recorder = traced(runner, *wanted)
    run(runner, ids, recorder)
    hidden = mask(f"{name}.scores[tokens=4:; keys=0,3:5]")
    after, recorder = traced(runner, *wanted, edits=[hidden])
    changed = run(runner, ids, recorder)
    keys, pattern = np.isin(np.arange(LENGTH), [0, 3, 4]), plain[f"{name}.pattern"][0].astype(np.float64)
    assert (after[f"{name}.scores"][0, :, 4:, keys] == -np.inf).all()
    assert after[f"{name}.scores"][0, :, :4].tobytes() == plain[f"{name}.scores"][0, :, :4].tobytes()
    left = np.where(keys, 0, pattern)
    # A sink takes its share of the weights, too.
    expected = left / np.maximum(1 - pattern[..., keys].sum(-1, keepdims=True), 1e-30)
    expected[~(left.sum(-1) > 1e-6)] = 0
    seen = left[:, 4:].sum(-1) > 1e-3
    found = after[f"{name}.pattern"][0, :, 4:]
    np.testing.assert_allclose(found[seen], expected[:, 4:][seen], rtol=2e-3, atol=1e-6)
    pinned, recorder = traced(runner, f"{name}.heads", edits=[replace(f"{name}.pattern", after[f"{name}.pattern"])])
    run(runner, ids, recorder)
    of_mask, of_pattern = after[f"{name}.heads"][0], pinned[f"{name}.heads"][0]
    np.testing.assert_allclose(of_mask, of_pattern, atol=1e-2 * np.abs(of_pattern).max())
    for edits in ([call(f"{name}.scores[tokens=4:]", partial(_hide, keys))], _one_by_one(f"{name}.scores", heads)):
        again, recorder = traced(runner, *wanted, edits=edits)
        assert run(runner, ids, recorder).tobytes() == changed.tobytes()
        assert again[f"{name}.pattern"].tobytes() == after[f"{name}.pattern"].tobytes()
    for chunks in ([1] * LENGTH, [4, 33]):
        if runner.spec.generates:
            parts, recorder = traced(runner, *wanted, edits=[hidden])
            assert run(runner, ids, recorder, chunks).tobytes() == changed.tobytes()
            assert parts[f"{name}.pattern"].tobytes() == after[f"{name}.pattern"].tobytes()


def _hide(keys: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(keys[: scores.shape[-1]], np.float32(-np.inf), scores)


def _one_by_one(name: str, heads: int) -> list[Edit]:
    """A mask for each head and key. Edits of a head compose."""
    return [mask(f"{name}[heads={head}; tokens=4:; keys={key}]") for head in range(heads) for key in (0, 3, 4)]


def test_all_keys_masked_leave_no_weight(runner: ModelRunner) -> None:
    names = [name for name in runner.plan.points if name.endswith(".scores")]
    if not names:
        pytest.skip("no attention")
    name = names[0].removesuffix(".scores")
    after, recorder = traced(runner, f"{name}.pattern", f"{name}.heads", edits=[mask(f"{name}.scores[heads=0]")])
    run(runner, ids_of(runner), recorder)
    assert not after[f"{name}.pattern"][0, 0].any()
    np.testing.assert_allclose(after[f"{name}.heads"][0, :, 0], 0, atol=1e-2 * np.abs(after[f"{name}.heads"]).max())


def test_the_same_is_recorded_however_a_text_is_cut(runner: ModelRunner) -> None:
    if not runner.spec.generates:
        pytest.skip("an encoder reads a text in one step")
    ids = ids_of(runner)
    whole, recorder = traced(runner, "**")
    run(runner, ids, recorder)
    for chunks in ([1] * LENGTH, [20, 1, 1, 15], [7, 30]):
        parts, recorder = traced(runner, "**")
        run(runner, ids, recorder, chunks)
        for name in whole:
            last = -1 if runner.plan.points[name].kind == "state" else slice(None)
            assert parts[name][:, last].tobytes() == whole[name][:, last].tobytes(), (name, chunks)


def together(
    runner: ModelRunner, texts: Sequence[Sequence[int]], recorders: Sequence[SequenceRecorder | None]
) -> list[bytes]:
    """Outputs of texts whose prefill runs in one step."""
    tables, head = [BlockTable() for _ in texts], runner.spec.head
    chunks = [
        Chunk(table, ids, len(ids) if head else 0, recorder=recorder)
        for table, ids, recorder in zip(tables, texts, recorders)
    ]
    outputs = runner.forward(chunks)
    for table in tables:
        runner.cache.truncate(table, 0)
    sizes = [len(ids) if head else 1 for ids in texts]
    return [part.tobytes() for part in np.split(outputs, np.cumsum(sizes)[:-1])]


def test_an_edit_changes_its_own_sequence_alone(runner: ModelRunner) -> None:
    name = next(name for name in values_of(runner) if name.endswith("0.residual"))
    texts = [ids_of(runner, seed)[: 9 + 3 * seed] for seed in range(4)]
    plain = [run(runner, ids, chunks=[len(ids)]).tobytes() for ids in texts]
    edits = [ablate(f"{name}[tokens=5:]", 0.25)]
    edits += [mask(f"{point}[tokens=5:; keys=4:6]") for point in runner.plan.points if point.endswith(".scores")]
    _, recorder = traced(runner, edits=edits)
    alone = run(runner, texts[1], recorder, [len(texts[1])]).tobytes()
    assert alone != plain[1]
    _, recorder = traced(runner, edits=edits)
    assert together(runner, texts, [None, recorder, None, None]) == [plain[0], alone, *plain[2:]]


def test_texts_of_one_step_are_recorded_each_by_itself(runner: ModelRunner) -> None:
    texts = [ids_of(runner, seed)[: 9 + 3 * seed] for seed in range(4)]
    wanted = ["**", "**", "blocks.0.residual[tokens=2:7]"]
    expected, recorders, plain = [], [], [run(runner, ids, chunks=[len(ids)]).tobytes() for ids in texts]
    for ids, one in zip(texts, wanted):
        trace, recorder = traced(runner, one)
        recorder.tokens = lambda ids=ids: ids
        run(runner, ids, recorder, [len(ids)])
        expected.append({name: trace[name].tobytes() for name in trace})
    for ids, one in zip(texts, wanted):
        trace, recorder = traced(runner, one)
        recorder.tokens = lambda ids=ids: ids
        recorders.append((trace, recorder))
    assert together(runner, texts, [*(recorder for _, recorder in recorders), None]) == plain
    for (trace, _), own in zip(recorders, expected):
        assert {name: trace[name].tobytes() for name in trace} == own


def test_a_function_does_what_an_edit_does(runner: ModelRunner) -> None:
    ids, name = ids_of(runner), next(name for name in values_of(runner) if name.endswith("0.residual"))
    _, recorder = traced(runner, edits=[ablate(f"{name}[tokens=3:9]")])
    expected = run(runner, ids, recorder)
    _, recorder = traced(runner, edits=[call(f"{name}[tokens=3:9]", lambda values: 0 * values)])
    assert run(runner, ids, recorder).tobytes() == expected.tobytes()
    _, recorder = traced(runner, edits=[call(name, lambda values: None)])
    assert run(runner, ids, recorder).tobytes() == run(runner, ids).tobytes()


def test_every_block_has_a_residual(runner: ModelRunner) -> None:
    points = runner.plan.points
    assert all(f"blocks.{layer}.residual" in points for layer in range(len(runner.spec.blocks)))


STATIC: list[tuple[Callable[[str], Edit], Callable[[NDArray[np.float32]], NDArray[np.float32]]]] = [
    (lambda where: scale(where, 0.5), lambda values: values * np.float32(0.5)),
    (lambda where: ablate(where, 0.25), lambda values: np.full_like(values, 0.25)),
    (lambda where: add(where, 0.125), lambda values: values + np.float32(0.125)),
]
"""Edits without a pause, and functions that do the same."""


@pytest.fixture
def changing_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program that begins a small step, and each part of a step that asks, gets another number of threads."""
    numbers = cycle((1, 2))
    of = property(lambda tuner: next(numbers), lambda tuner, threads: None)
    monkeypatch.setattr(ThreadTuner, "threads", of, raising=False)
    monkeypatch.setattr(ThreadTuner, "record", lambda tuner, waits, seconds: None)


def test_functions_at_every_point_whatever_threads_the_steps_have(runner: ModelRunner, changing_threads: None) -> None:
    if not runner.spec.generates:
        pytest.skip("an encoder has no small steps")
    ids, last = ids_of(runner), len(runner.spec.blocks) - 1
    own = [
        name
        for name, point in runner.plan.points.items()
        if (point.kind in ("pattern", "scores") or name in values_of(runner))
        and (not name.startswith("blocks.") or name.startswith((f"blocks.{last}.", "blocks.0.")))
    ]
    for number, name in enumerate(own):
        static, function = STATIC[number % len(STATIC)]
        for where in (name, f"{name}[tokens=6,5]"):
            plain, recorder = traced(runner, "blocks.*.residual", edits=[static(where)])
            expected = run(runner, ids[:8], recorder, (4, 1, 1, 1, 1))
            found, recorder = traced(runner, "blocks.*.residual", edits=[call(where, function)])
            assert run(runner, ids[:8], recorder, (4, 1, 1, 1, 1)).tobytes() == expected.tobytes(), where
            assert all(found[one].tobytes() == plain[one].tobytes() for one in plain), where
