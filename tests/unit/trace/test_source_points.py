"""Values of the encoder in an encoder-decoder: recorded for the tokens of the source, and changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pages import lose_pages_between_steps
from support.sources import LETTERS, source_model
from support.tiny import SOURCES

import pellucid
from pellucid.errors import InvalidRequest
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.trace import ablate, call, replace, rollout, scale
from pellucid.trace.frames import TraceFrame
from pellucid.trace.lenses.attribution import attribute
from pellucid.trace.trace import Trace

SOURCE, OTHER = "".join(LETTERS[10:40]), "".join(LETTERS[60:64])
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0, "logprobs": 0, "ignore_eos": True}
ENCODER = (
    "encoder.embed",
    "encoder.blocks.*.residual",
    "encoder.blocks.*.attention.pattern",
    "encoder.blocks.*.attention.q",
    "encoder.blocks.*.attention.k",
    "blocks.*.cross.k",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source_model("marian", tmp_path_factory.mktemp("sources"))


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with pellucid.load(folder, threads=2) as loaded:
        yield loaded


def result(generation: Any) -> tuple[list[int], bytes]:
    return generation.ids, generation.logprobs.chosen.tobytes()


@pytest.mark.parametrize("name", ["marian", "t5-odd", "bart", "t5gemma"])
def test_values_of_the_source_are_recorded_and_change_no_bit(name: str, tmp_path: Path) -> None:
    with pellucid.load(source_model(name, tmp_path), precise=True) as llm:
        plain = result(llm.generate(SOURCE, **OPTIONS))
        with llm.trace(*ENCODER, "blocks.0.cross.pattern", "blocks.0.cross.q") as trace:
            assert result(llm.generate(SOURCE, **OPTIONS)) == plain  # the source was in the prefix cache
            llm.generate(OTHER, **OPTIONS)
        first, second = trace.sequences
        ids = llm.tokenizer.encode(SOURCE)
        assert first.source_pieces == [llm.tokenizer.piece(token) for token in ids]
        T, D, answer = len(ids), llm.spec.encoder.embedding.width, len(first)
        assert first["encoder.blocks.-1.residual"].shape == (T, D)
        assert second["encoder.blocks.0.residual"].shape == (len(llm.tokenizer.encode(OTHER)), D)
        assert np.isfinite(trace["encoder.blocks.0.residual"][0]).all()
        for value in (trace.sequences[0][part] for part in trace):
            assert np.isfinite(value).all()
        pattern = first["encoder.blocks.0.attention.pattern"]
        assert pattern.shape[1:] == (T, T)
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=0, atol=1e-5)
        # Cross attention attends with these queries to these keys.
        q, k = first["blocks.0.cross.q"], first["blocks.0.cross.k"]
        cross = llm.spec.blocks[0].cross
        k = np.repeat(k, cross.heads // cross.kv_heads, 1)
        scores = cross.scale * np.einsum("qhd,khd->hqk", q.astype(np.float64), k)
        if cross.softcap:
            scores = cross.softcap * np.tanh(scores / cross.softcap)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        wanted = weights / weights.sum(-1, keepdims=True)
        assert wanted.shape == (cross.heads, answer, T)
        np.testing.assert_allclose(first["blocks.0.cross.pattern"], wanted, rtol=0, atol=3e-3)


@pytest.mark.parametrize("name", ["marian", "t5-odd", "bart", "t5gemma"])
def test_the_last_vectors_of_the_encoder_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    with np.load(SOURCES[name] / "expected.npz") as file:
        source, wanted = file["source_ids"].tolist(), file["hidden"]
    with pellucid.load(source_model(name, tmp_path), precise=True) as llm:
        last = [point for point in llm.points if point in ("encoder.norm", "encoder.blocks.1.residual")][-1]
        with llm.trace(last) as trace:
            llm.generate(source, max_new_tokens=1)
        np.testing.assert_allclose(trace[last][0], wanted, rtol=0, atol=1e-4 * np.ptp(wanted))


def test_all_ways_to_run_record_the_same_source(llm: LLM) -> None:
    name = "encoder.blocks.1.residual"
    with llm.trace(name, "blocks.1.residual") as trace:
        made = llm.generate(SOURCE, **OPTIONS)
        llm.score(made.ids, given=SOURCE)
        llm.beam_search(SOURCE, num_beams=3, max_new_tokens=4, num_return_sequences=2)
        llm.samples(SOURCE, 2, max_new_tokens=3, temperature=1.0, seed=1)
        llm.generate([OTHER, SOURCE], **OPTIONS)
    rows = [one[name] for one in trace.sequences]
    assert len(rows) == 8
    for number, own in enumerate(rows):
        if number != 6:
            np.testing.assert_array_equal(own, rows[0])
    assert len(rows[6]) == len(llm.tokenizer.encode(OTHER))


def test_selected_tokens_and_displays_are_those_of_the_source(llm: LLM) -> None:
    with llm.trace("encoder.blocks.0.attention.pattern[heads=1; tokens=2:4]", "blocks.1.cross.pattern") as trace:
        llm.generate(OTHER, **OPTIONS)
    (sequence,) = trace.sequences
    assert sequence["encoder.blocks.0.attention.pattern"].shape == (1, 2, 5)
    page = sequence._repr_html_()
    assert "encoder.blocks.0.attention.pattern, head 1" in page
    assert all(piece in page for piece in OTHER)


def test_an_edit_of_the_encoder_belongs_to_its_request(llm: LLM) -> None:
    plain = result(llm.generate(SOURCE, **OPTIONS))
    edits = [ablate("encoder.blocks.0.residual[tokens=3]"), scale("encoder.blocks.1.attention.heads[heads=2]", 3)]
    name = "encoder.blocks.0.residual"
    with llm.trace(name) as trace:
        edited = result(llm.generate(SOURCE, **OPTIONS, edits=edits))
        assert result(llm.generate(SOURCE, **OPTIONS)) == plain  # finds no pages of the edited source
        assert result(llm.generate(SOURCE, **OPTIONS, edits=edits)) == edited != plain
    changed = trace.sequences[0][name]
    assert not changed[3].any()
    assert changed[4].any()
    assert trace.sequences[0].edited == {name, "encoder.blocks.1.attention.heads"}
    assert llm.generate(SOURCE, **OPTIONS).usage.cached_tokens == len(llm.tokenizer.encode(SOURCE))
    assert llm.generate(SOURCE, **OPTIONS, edits=edits).usage.cached_tokens == 0


def test_a_patched_encoder_answers_for_the_other_source(llm: LLM) -> None:
    other = SOURCE[::-1]
    name = "encoder.blocks.-1.residual"
    with llm.trace(name) as trace:
        wanted = result(llm.generate(other, **OPTIONS))
    patch = replace(name, trace.sequences[0][name])
    assert result(llm.generate(SOURCE, **OPTIONS)) != wanted
    assert result(llm.generate(SOURCE, **OPTIONS, edits=[patch])) == wanted
    halved = call(name, lambda values: values * np.float32(0.5))
    assert result(llm.generate(SOURCE, **OPTIONS, edits=[halved])) == result(
        llm.generate(SOURCE, **OPTIONS, edits=[scale(name, 0.5)])
    )


def test_an_edited_cross_pattern_decides_what_an_answer_looks_at(llm: LLM) -> None:
    plain = result(llm.generate(SOURCE, **OPTIONS))
    points = [f"blocks.{layer}.cross.pattern" for layer in range(2)]
    with llm.trace(*points) as trace:
        llm.generate(SOURCE, **OPTIONS)
    own = [replace(f"{name}[tokens=0:8]", trace[name][0]) for name in points]
    assert result(llm.generate(SOURCE, **OPTIONS, edits=own)) == plain
    keys = len(llm.tokenizer.encode(SOURCE))
    last = np.eye(keys, dtype=np.float32)[-1]
    with llm.trace(points[0], "blocks.0.cross.heads") as trace:
        changed = llm.generate(SOURCE, **OPTIONS, edits=[replace(name, last) for name in points])
    assert result(changed) != plain
    assert (trace[points[0]][0] == last).all()
    heads = trace["blocks.0.cross.heads"][0]
    np.testing.assert_allclose(heads, np.broadcast_to(heads[:1], heads.shape), rtol=0, atol=1e-5)
    zeros, of_other = (
        llm.generate(text, **OPTIONS, edits=[ablate("blocks.*.cross.pattern")]).logprobs.chosen
        for text in (SOURCE, OTHER)
    )
    np.testing.assert_allclose(zeros, of_other, rtol=0, atol=1e-4)


def test_a_source_that_loses_its_pages_is_recorded_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, forward = list[int](), llm.runner.encoder.forward

    def counted(chunks: list[Chunk], **how: Any) -> Any:
        encoded.extend(len(chunk.tokens) for chunk in chunks)
        return forward(chunks, **how)

    monkeypatch.setattr(llm.runner.encoder, "forward", counted)
    with llm.trace("encoder.blocks.0.residual") as trace:
        llm.samples(SOURCE, 4, **OPTIONS)
    assert encoded == [31]
    values = [sequence["encoder.blocks.0.residual"] for sequence in trace.sequences]
    assert all(np.array_equal(values[0], other) for other in values)
    with llm.trace("blocks.0.residual"):  # the prefix cache has the source
        llm.generate(SOURCE, **OPTIONS)
    assert encoded == [31]
    with llm.trace("encoder.blocks.0.residual"):
        llm.generate(SOURCE, **OPTIONS)
    assert encoded == [31, 31]


REFUSED: dict[str, tuple[Callable[[LLM], object], str]] = {
    "a position after the source": (
        lambda llm: llm.generate(OTHER, edits=[ablate("encoder.blocks.0.residual[tokens=5]")]),
        "begins at position 5, and a source of 5 tokens has no such position",
    ),
    "a key after the source": (
        lambda llm: llm.generate(OTHER, edits=[replace("blocks.0.cross.pattern", np.ones(6))]),
        "it attends to token 5, and a source of 5 tokens has no such token: give 5 keys at most",
    ),
    "a function that fails": (
        lambda llm: llm.generate(OTHER, edits=[call("encoder.blocks.0.residual", lambda x: 1 // 0)]),
        "the function fails: ZeroDivisionError",
    ),
    "values that are not finite": (
        lambda llm: llm.generate(
            OTHER, edits=[scale("encoder.embed", 2), *[scale("project.logits", 1e30)] * 2], temperature=0
        ),
        r"because of the request's edits \(project.logits, encoder.embed\)",
    ),
    "an unknown point": (lambda llm: llm.trace("encoder.blocks.7.residual").__enter__(), "the nearest are"),
    "values of a source that has been read": (
        lambda llm: _watched_late(llm),
        "the encoder has read the source of this request",
    ),
    "too many bytes": (lambda llm: _traced(llm, budget=1000), "budget=1,000: a trace of 31 tokens"),
}


def _traced(llm: LLM, budget: int) -> None:
    with llm.trace("encoder.blocks.*.residual", budget=budget):
        llm.generate(SOURCE, **OPTIONS)


def _watched_late(llm: LLM) -> None:
    request = llm.request(OTHER, **OPTIONS)
    next(iter(request))
    try:
        llm.watch(request, ["encoder.blocks.0.residual"])
    finally:
        request.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_apply_is_refused_in_one_line(llm: LLM, name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message) as error:
        function(llm)
    assert "\n" not in str(error.value)
    assert llm.generate(OTHER, **OPTIONS).ids


def test_lenses_of_the_answer_do_not_read_the_source(tmp_path: Path) -> None:
    with pellucid.load(source_model("t5-odd", tmp_path), precise=True) as llm:
        with llm.trace("**") as trace:
            llm.generate(SOURCE, max_new_tokens=4, temperature=0, ignore_eos=True)
        sequence = trace.sequences[0]
        assert rollout(llm, sequence).shape == (len(llm.spec.blocks), 4, 4)
        assert attribute(llm, sequence).contributions


def test_values_of_a_running_request_are_streamed(llm: LLM) -> None:
    names = ["blocks.0.cross.pattern", "blocks.0.residual"]
    with llm.trace(*names) as trace:
        plain = llm.generate(SOURCE, **OPTIONS)
    (wanted,) = trace.sequences
    request = llm.request(SOURCE, **OPTIONS)
    stream = llm.watch(request, names, 256, lambda: None)
    request.wait()
    rows = {name: dict[int, np.ndarray]() for name in names}
    for frame in stream.frames():
        for at, row in zip(frame.positions, frame.values):
            rows[frame.selected.name][at] = row
    assert request.result().ids == plain.ids
    assert all(sorted(found) == list(range(len(wanted))) for found in rows.values())
    for at in range(len(wanted)):
        for name in names:
            assert np.array_equal(rows[name][at], wanted.at(name, at)[..., : rows[name][at].shape[-1]])
    assert rows["blocks.0.cross.pattern"][0].shape[-1] == len(wanted.source_pieces)


STREAMED = (
    "encoder.blocks.*.residual",
    "encoder.blocks.1.attention.pattern[heads=2,0]",
    "blocks.*.cross.k",
    "blocks.0.cross.v[heads=1; tokens=3:9]",
    "blocks.1.residual",
)


def rows_of(frames: Iterable[TraceFrame]) -> dict[tuple[int, str, int], np.ndarray]:
    """Rows by sequence, point and position. Each comes once."""
    rows = dict[tuple[int, str, int], np.ndarray]()
    for frame in frames:
        for at, row in zip(frame.positions, frame.values, strict=True):
            key = frame.sequence, frame.selected.name, at
            assert key not in rows, key
            rows[key] = row
    return rows


def check_rows(rows: dict[tuple[int, str, int], np.ndarray], trace: Trace, sources: set[int]) -> None:
    """Compare rows with the sequences of a trace. Sequences in ``sources`` have the rows of a source."""
    expected = 0
    for number, sequence in enumerate(trace.sequences):
        for part in trace.selected:
            if part.point.of_source and number not in sources:
                continue
            count = len(sequence.source_pieces) if part.point.of_source else len(sequence)
            for at in range(count)[part.tokens.start : part.tokens.stop]:
                np.testing.assert_array_equal(rows[number, part.name, at], sequence.at(part.name, at))
                expected += 1
    assert len(rows) == expected


def test_values_of_the_source_are_streamed_once(llm: LLM) -> None:
    with llm.trace(*STREAMED) as trace:
        llm.generate(SOURCE, **OPTIONS)
        llm.generate([OTHER, SOURCE], **OPTIONS)
    frames = list[TraceFrame]()
    with llm.trace(*STREAMED, on=frames.append) as again:
        llm.generate(SOURCE, **OPTIONS)
        llm.generate([OTHER, SOURCE], **OPTIONS)
    assert again.stream.dropped == 0
    check_rows(rows_of(frames), trace, {0, 1, 2})
    check_rows(rows_of(frames), again, {0, 1, 2})
    # Several answers to a source read it once; so does a request whose client asks for its values.
    for count in (1, 3):
        llm.runner.encoder.cache.clear_prefixes()
        request = llm.request(SOURCE, count, **{**OPTIONS, "temperature": 1.0, "seed": 3})
        stream = llm.watch(request, STREAMED, 256, lambda: None)
        request.wait()
        with llm.trace(*STREAMED) as trace:
            llm.request(SOURCE, count, **{**OPTIONS, "temperature": 1.0, "seed": 3}).wait()
        found = rows_of(stream.frames())
        assert stream.dropped == 0
        own = {key: row for key, row in found.items() if key[1] != "blocks.1.residual"}
        assert {key[0] for key in own} == {0}
        for (_, name, at), row in own.items():
            np.testing.assert_array_equal(row, trace.sequences[0].at(name, at))
        assert len(own) == (2 + 1 + 2) * 31 + 6
    llm.generate(SOURCE, **OPTIONS)  # the source is in the prefix cache
    request, stream = llm.request_with_values(SOURCE, STREAMED, **OPTIONS)
    request.wait()
    with llm.trace(*STREAMED) as trace:
        llm.generate(SOURCE, **OPTIONS)
    check_rows(rows_of(stream.frames()), trace, {0})


def test_a_source_that_is_encoded_again_is_streamed_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that loses its pages runs its source again."""
    encoded, forward = list[int](), llm.runner.encoder.forward

    def counted(chunks: list[Chunk], **how: Any) -> Any:
        encoded.extend(len(chunk.tokens) for chunk in chunks)
        return forward(chunks, **how)

    monkeypatch.setattr(llm.runner.encoder, "forward", counted)
    frames = list[TraceFrame]()
    with llm.trace(*STREAMED, on=frames.append):
        request = llm.request(SOURCE, **{**OPTIONS, "max_new_tokens": 40})
        tokens = iter(request)
        for _ in range(3):
            next(tokens)
        lose_pages_between_steps(llm)
        assert sum(1 for _ in tokens) == 37
    assert encoded == [31, 31]
    assert len(rows_of(frame for frame in frames if frame.selected.point.of_source)) == (2 + 1 + 2) * 31 + 6
