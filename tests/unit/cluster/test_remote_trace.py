"""Watched requests on replicas send the same frames as an engine in the server, also after the loss of a replica."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from support.links import messages_changed_by
from support.replicas import SECONDS, SECRET, ReplicaProcess, finished, loads_from, replicas, run
from support.served import Served, models_folder, serving

import pellucid
from pellucid.cluster import wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_model import RemoteModel
from pellucid.cluster.remote_request import called
from pellucid.cluster.remote_trace import RemoteTraceStream
from pellucid.cluster.replica_link import ReplicaLink
from pellucid.cluster.secret import ClusterSecret
from pellucid.engine.request import run_together
from pellucid.errors import InvalidRequest, KernelError
from pellucid.llm import LLM
from pellucid.loading import open_model
from pellucid.serve.live_requests import Viewer
from pellucid.serve.look.trace_reading import TRACE, TraceReading
from pellucid.testing import random_model
from pellucid.trace import ablate, add, replace, scale
from pellucid.trace.frames import TraceFrame, TraceStream

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "
POINTS = ["blocks.*.residual", "blocks.1.attention.pattern[heads=1,0]", "norm", "embed[tokens=3:9; dims=5,2]"]
HOW: dict[str, Any] = {"max_new_tokens": 900, "ignore_eos": True, "temperature": 1.3, "prompt_lookup": False}


def rows_of(frames: Sequence[TraceFrame]) -> dict[tuple[str, int, int], np.ndarray]:
    """Rows by (point, sequence, position), without duplicates. Patterns are cut to the keys up to their position."""
    rows: dict[tuple[str, int, int], np.ndarray] = {}
    for frame in frames:
        for position, row in zip(frame.positions, frame.values, strict=True):
            key = frame.selected.name, frame.sequence, position
            assert key not in rows, key
            rows[key] = row[:, : position + 1] if frame.selected.point.kind == "pattern" else row
    return rows


def equal(one: dict[Any, np.ndarray], other: dict[Any, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key, row in one.items():
        assert np.array_equal(row, other[key]), key


async def heard(
    model: LLM | RemoteModel, group: Any, work: Any = None, names: Sequence[str] = POINTS
) -> list[TraceFrame]:
    """Run a request, reading its frames as they arrive. Returns all frames."""
    loop, ready, frames, over = asyncio.get_running_loop(), asyncio.Event(), list[TraceFrame](), False
    stream = model.watch(group, names, 4096, lambda: loop.call_soon_threadsafe(ready.set))

    async def read() -> None:
        while True:
            last = over
            ready.clear()
            frames.extend(stream.frames())
            if last:
                return
            await ready.wait()

    reading = asyncio.ensure_future(read())
    count = 0
    async for _ in group.stream():
        count += 1
        if work:
            await work(count)
    over = True
    ready.set()
    await reading
    stream.close()
    assert stream.dropped == 0
    return frames


def undisturbed(alone: LLM, n: int = 1, names: Sequence[str] = POINTS, **how: Any) -> tuple[list[list[int]], Any]:
    """Token ids and frame rows of the same request on the engine of this process."""
    alone.runner.cache.clear_prefixes()
    group = alone.request(PROMPT, n, **{**HOW, **how})
    frames = asyncio.run(heard(alone, group, names=names))
    return [one.ids for one in group.results()], rows_of(frames)


@pytest.mark.parametrize("n", [1, 3])
def test_frames_are_those_of_this_process(llama_file: Path, alone: LLM, n: int) -> None:
    ids, wanted = undisturbed(alone, n, seed=1, max_new_tokens=40)
    assert {key[1] for key in wanted} == set(range(n))

    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            group = model.request(PROMPT, n, **{**HOW, "seed": 1, "max_new_tokens": 40})
            frames = await heard(model, group)
            assert [one.ids for one in group.results()] == ids
            equal(rows_of(frames), wanted)

    run(work())


@pytest.mark.parametrize("how", ["killed", "drained"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_watching_goes_where_the_request_goes(llama_file: Path, alone: LLM, how: str, n: int) -> None:
    ids, wanted = undisturbed(alone, n, seed=2)

    async def work() -> None:
        async with replicas(llama_file, 3) as (made, model):
            group = model.request(PROMPT, n, **{**HOW, "seed": 2})

            async def move(count: int) -> None:
                if count in (30, 150):
                    if how == "killed":
                        await made.kill()
                    else:
                        (link,) = made.busy
                        link.send("drain")
                        before = made.fleet.moved
                        while made.fleet.moved == before:  # a slow reader may have many tokens yet to read
                            await asyncio.sleep(0.01)

            frames = await heard(model, group, move)
            assert made.fleet.moved == 2
            assert [one.ids for one in group.results()] == ids
            equal(rows_of(frames), wanted)

    run(work())


@pytest.mark.parametrize("own", [False, True])
def test_values_of_a_source_come_once_also_after_the_loss_of_a_replica(own: bool, tmp_path: Path) -> None:
    path = random_model("marian", tmp_path / "marian", kind="safetensors", layers=2, context=2048)
    names = ["encoder.blocks.*.residual", "encoder.blocks.0.attention.pattern", "blocks.*.cross.v"]
    how: dict[str, Any] = {"max_new_tokens": 900, "ignore_eos": True, "temperature": 1.3, "seed": 4}
    with pellucid.load(path, threads=1) as alone, alone.trace(*names) as trace:
        wanted = alone.generate(PROMPT, **how).ids
    sequence = trace.sequences[0]

    async def work() -> None:
        async with replicas(path, 2) as (made, model):
            if own:
                group, stream = model.request_with_values(PROMPT, names, **how)
            else:
                group = model.request(PROMPT, **how)
                stream = model.watch(group, names, 4096, lambda: None)
            frames, count = list[TraceFrame](), 0
            async for _ in group.stream():
                frames.extend(stream.frames())
                count += 1
                if count == 10:
                    await made.kill()
            frames.extend(stream.frames())
            stream.close()
            assert made.fleet.moved == 1
            assert group.results()[0].ids == wanted
            assert len(frames) == 5
            for frame in frames:
                values = sequence[frame.selected.name]
                is_pattern = frame.selected.point.kind == "pattern"
                found = frame.values.swapaxes(0, 1) if is_pattern else frame.values
                np.testing.assert_array_equal(found.reshape(values.shape), values)
            assert {frame.selected.name for frame in frames} == set(trace)

    run(work())


@pytest.mark.parametrize("edits", [[], [scale("blocks.0.residual", 1.5)]])
def test_the_values_of_a_clients_own_request(llama_file: Path, alone: LLM, edits: list[Any]) -> None:
    """They arrive before the tokens that they lead to, also after the loss of a replica."""
    how = {**HOW, "seed": 5, "max_new_tokens": 900, "edits": edits}  # the reader must not be long behind
    norms = ["blocks.*.attention.output"]

    async def heard_own(model: LLM | RemoteModel, work: Any = None) -> tuple[list[int], list[TraceFrame]]:
        group, stream = model.request_with_values(PROMPT, POINTS, norms, **how)
        frames, count = list[TraceFrame](), 0
        async for _ in group.stream():
            frames.extend(stream.frames())
            count, last = count + 1, max(frame.positions.stop for frame in frames)
            assert last >= len(group.prompt) + count - 1
            if work and count in (30, 150):
                await work()
        frames.extend(stream.frames())
        stream.close()
        assert stream.dropped == 0
        return group.results()[0].ids, frames

    ids, wanted = asyncio.run(heard_own(alone))

    async def work() -> None:
        async with replicas(llama_file, 3) as (made, model):
            moved, frames = await heard_own(model, made.kill)
            assert made.fleet.moved == 2
            assert moved == ids
            equal(rows_of(frames), rows_of(wanted))

    run(work())


def test_what_is_read_ahead_comes_again(llama_file: Path, alone: LLM) -> None:
    """Rows of rejected draft tokens are sent again. The last row of each position is correct."""
    prompt, how = "abcdefgh" * 30, {"max_new_tokens": 150, "temperature": 0.2, "seed": 4, "ignore_eos": True}
    with alone.trace("blocks.*.residual") as trace:
        ids = alone.generate(prompt, **how).ids

    async def work() -> None:
        async with replicas(llama_file, 2) as (made, model):
            group = model.request(prompt, **how)

            async def kill(count: int) -> None:
                if count == 60:
                    await made.kill()

            frames = await heard(model, group, kill, ["blocks.*.residual"])
            assert group.results()[0].ids == ids
            rows = {(f.selected.name, p): row for f in frames for p, row in zip(f.positions, f.values)}
            for name in ("blocks.0.residual", "blocks.1.residual"):
                for position, row in enumerate(trace.sequences[0][name]):
                    assert np.array_equal(rows[name, position], row), position

    run(work())


def test_somebody_comes_later_and_goes(llama_file: Path, alone: LLM) -> None:
    ids, wanted = undisturbed(alone, seed=3, max_new_tokens=1900)

    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            group = model.request(PROMPT, **{**HOW, "seed": 3, "max_new_tokens": 1900})
            streams, looks, came = list[TraceStream](), [list[TraceFrame](), list[TraceFrame]()], list[int]()

            async def come_and_go(count: int) -> None:
                if not came or (len(came) == 1 and streams[0].closed and count >= came[0] + 40):
                    came.append(count)
                    streams.append(model.watch(group, ["blocks.*.residual"], 4096, lambda: None))
                elif not streams[-1].closed:
                    frames = looks[len(came) - 1]
                    frames.extend(streams[-1].frames())
                    if len({position for _, _, position in rows_of(frames)}) > 50:
                        streams[-1].close()

            await finished(group, come_and_go)  # type: ignore[arg-type]
            assert group.results()[0].ids == ids[0]
            assert [stream.closed for stream in streams] == [True, True]
            rows = rows_of(looks[0] + looks[1])
            assert 50 < len({position for _, _, position in rows}) < 1900
            for key, row in rows.items():
                assert np.array_equal(row, wanted[key])

    run(work())


def test_who_reads_slowly_loses_frames_and_nobody_waits(llama_file: Path) -> None:
    async def work() -> None:
        async with replicas(llama_file, 1) as (_, model):
            group = model.request(PROMPT, **{**HOW, "max_new_tokens": 1500})
            stream = model.watch(group, ["**.residual"], 8, lambda: None)
            assert isinstance(stream, RemoteTraceStream)
            together = 8 * len(stream.selected)
            read_while_running = 0
            async for _ in group.stream():
                # After the last token, the replica sends all frames that waited.
                read_while_running += not group.outputs[0].ended
            assert read_while_running > 0
            rest = list(stream.frames())
            assert stream.dropped > 1000
            # At most the frames that had arrived, the frames that waited on the replica, and a partial frame per point.
            assert 0 < len(rest) <= together + together + len(stream.selected)
            stream.close()

    run(work())


def test_names_are_checked_here(llama_file: Path) -> None:
    async def work() -> None:
        async with replicas(llama_file, 1) as (made, model):
            group = model.request(PROMPT, **HOW)
            for names, limit, said in (
                (["blocks.0.residul"], 8, "the nearest are"),
                (["sample.top_k"], 8, "not a value of a step"),
                (["embed"], 0, "limit"),
            ):
                with pytest.raises(InvalidRequest, match=said):
                    model.watch(group, names, limit, lambda: None)
            divided = RemoteModel(made.opened, made.fleet, stages=2)
            with pytest.raises(InvalidRequest, match="on several machines"):
                divided.watch(group, ["embed"], 8, lambda: None)
            with pytest.raises(InvalidRequest, match="on several machines"):
                divided.request(PROMPT, edits=[ablate("embed")])

    run(work())


@pytest.mark.parametrize("after", [0, 25])
def test_edits_outlive_a_replica(llama_file: Path, alone: LLM, after: int) -> None:
    vector = np.linspace(-1, 1, alone.spec.embedding.width, dtype=np.float32)
    pattern = np.zeros(12, np.float32)
    pattern[0] = 1
    edits = [
        ablate("blocks.0.attention.heads[heads=1]"),
        scale("blocks.1.feedforward.output", 1.5),
        add("blocks.0.residual[tokens=5:40]", vector, 0.25),
        replace("blocks.1.attention.pattern[heads=0; tokens=9:60]", pattern),
    ]
    how = {"max_new_tokens": 400, "seed": 5, "ignore_eos": True, "logprobs": 2}
    wanted = alone.samples(PROMPT, 2, edits=edits, **how)
    assert wanted[0].ids != alone.generate(PROMPT, **how).ids

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            group = model.request(PROMPT, 2, edits=edits, **how)
            if not after:
                asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(made.kill()))
            await finished(group, lambda count: made.kill() if count == after else None)
            for one, other in zip(group.results(), wanted, strict=True):
                assert one.ids == other.ids
                assert np.array_equal(one.logprobs.chosen, other.logprobs.chosen)

    run(work())


def test_a_look_is_made_again(llama_file: Path, alone: LLM) -> None:
    fields = {"prompt": PROMPT, "points": ["blocks.*.residual", "sample.top_k"], "max_new_tokens": 600,
              "temperature": 1.2, "seed": 3, "ignore_eos": True}  # fmt: skip
    reading = TraceReading.of(TRACE.decode(fields), alone)
    run_together(reading.groups)
    wanted = json.dumps(reading.answer("m", "")).encode()

    async def work() -> None:
        async with replicas(llama_file) as (made, model):
            asked = asyncio.ensure_future(model.look("trace", "m", fields))
            while not any(link.state and link.state.running for link in made.fleet.links):
                await asyncio.sleep(0.01)
            await made.kill()
            assert await asked == wanted
            assert made.fleet.moved == 1

    run(work())


def test_an_ingress_that_is_started_again_watches_what_runs(llama_file: Path, alone: LLM) -> None:
    ids, wanted = undisturbed(alone, seed=6, max_new_tokens=1900)

    async def work() -> None:
        async with replicas(llama_file, 1) as (made, model):
            first = model.request(PROMPT, **{**HOW, "seed": 6, "max_new_tokens": 1900})
            first.set_name("a name", False)
            left = model.watch(first, POINTS, 4096, lambda: None)
            stream = first.stream()
            for _ in range(20):
                await anext(stream)
            again = Fleet(ClusterSecret(SECRET))
            again.add(next(iter(made.processes)))
            try:
                await again.ready(SECONDS)
                other = RemoteModel(made.opened, again)
                group = other.request(PROMPT, **{**HOW, "seed": 6, "max_new_tokens": 1900})
                group.set_name("a name", True)
                frames = await heard(other, group)
                assert group.results()[0].ids == ids[0]
                rows = rows_of(frames)
                assert rows
                for key, row in rows.items():
                    assert np.array_equal(row, wanted[key])
                left.close()
            finally:
                await again.close()

    run(work())


def test_what_fits_nothing_is_refused(llama_file: Path) -> None:
    """The replica refuses an invalid watch with one line, and the request continues. The ingress ends the request."""
    numbers, frame = list[int](), list[Any]()

    def change(link: ReplicaLink, message: Sequence[Any]) -> Sequence[Any]:
        kind, number, *_ = message
        numbers.append(number)
        return ["values", number, *frame, False] if frame and kind == "token" else message

    async def work() -> None:
        with ReplicaProcess(llama_file, "one") as replica, messages_changed_by(change):
            fleet = Fleet(ClusterSecret(SECRET))
            fleet.add(replica.address)
            opened = open_model(llama_file)
            try:
                await fleet.ready(SECONDS)
                model = RemoteModel(opened, fleet)
                group = model.request(PROMPT, **HOW)
                bad: list[list[Any]] = [
                    [1, ["blocks.0.nothing"], 8, [0]], [1, [5], 8, [0]], [1, ["embed"], 10**9, [0]], [1, "embed"],
                    [1, ["embed"], 8, ["x"]],
                ]  # fmt: skip

                async def send(count: int) -> None:
                    if count == 5:
                        for fields in bad:
                            fleet.links[0].send("watch", numbers[-1], *fields)

                await finished(group, send)  # type: ignore[arg-type]
                assert len(group.results()[0].ids) == 900
                for what in ("look/nothing", "look/__class__"):
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(called(fleet, what, [], {"name": "m", "fields": b"{}"}), 0.3)
                for wrong in (
                    [wire.array_fields(np.zeros((2, 3)))], [0, 99, 0, wire.array_fields(np.zeros((2, 3)))],
                    [0, 0, 0, ["O", [1], b"12345678"]], [7, 0, 0, wire.array_fields(np.zeros((2, 3)))],
                ):  # fmt: skip
                    group = model.request(PROMPT, **HOW)
                    stream = model.watch(group, ["embed"], 8, lambda: None)
                    assert isinstance(stream, RemoteTraceStream)
                    frame[:] = [stream.number, wire.pack([["frames", 0, [wrong]]])]
                    group.start()
                    with pytest.raises(KernelError, match="sent an invalid message"):
                        await group.finished()
            finally:
                await fleet.close()
                opened.checkpoint.close()
            said = replica.close().splitlines()
        assert len(said) == len(bad) + 2
        assert all("a message was refused" in line and len(line) < 400 for line in said)

    run(work())


# Over HTTP.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_folder(tmp_path_factory.mktemp("watching"))


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[tuple[Served, Served]]:
    with (
        ReplicaProcess(folder / "one", "one", threads=2) as one,
        serving(folder) as here,
        serving(folder, load=loads_from(folder, {"one": [one.address]})) as there,
    ):
        yield here, there


def events_of(served: Served, number: str, body: dict[str, Any], **query: Any) -> list[tuple[str, Any]]:
    """Events of the trace of a request; the trace is opened before the request starts."""
    found, kind = list[tuple[str, Any]](), ""

    def look() -> None:
        nonlocal kind
        url, params = f"{served.url}/v1/requests/{number}/trace", {"wait": 20, **query}
        with httpx.stream("GET", url, params=params, timeout=60) as answer:
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    found.append((kind, json.loads(value)))

    viewer = threading.Thread(target=look)
    viewer.start()
    while number not in served.awaited:
        time.sleep(0.01)
    answer = httpx.post(f"{served.url}/v1/completions", json=body, headers={"X-Request-Id": number}, timeout=60)
    assert answer.status_code == 200, answer.text
    viewer.join(60)
    return found


def test_events_are_those_of_a_server_with_an_engine(servers: tuple[Served, Served]) -> None:
    body = {"model": "one", "prompt": "to see that it rains", "max_tokens": 60, "seed": 5, "n": 2,
            "ignore_eos": True, "prompt_lookup": False}  # fmt: skip
    points, rows = ["blocks.0.residual", "blocks.1.attention.pattern[heads=1]"], list[Any]()
    for served in servers:
        events = events_of(served, "mine", body, points=points, limit=4096)
        assert events[0][1] == {**events[0][1], "version": 1, "request": "mine", "model": "one"}
        assert events[-1] == ("end", {"frames_dropped": 0})
        values = [one for kind, one in events if kind == "values"]
        rows.append((
            events[0][1],
            sorted((one["choice"], one["position"], one["id"], one["text"]) for k, one in events if k == "token"),
            sorted((one["choice"], one["point"], one["first"], one["shape"], one["data"]) for one in values),
        ))  # fmt: skip
    assert rows[0] == rows[1]
    assert base64.b64decode(rows[0][2][0][4])


def test_one_at_a_time(servers: tuple[Served, Served]) -> None:
    _, served = servers
    body = {"model": "one", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "n": 8, "stream": True,
            "logprobs": True, "top_logprobs": 20, "ignore_eos": True}  # fmt: skip
    asked = f"{served.url}/v1/requests/long/trace?points=embed&wait=20"
    url, headers = f"{served.url}/v1/chat/completions", {"X-Request-Id": "long"}
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        answers = answer.iter_lines()  # dropping the iterator closes the answer
        next(answers)
        (request,) = served.app.state.live.visible_to(Viewer(""))
        for _ in range(2):
            with httpx.stream("GET", asked, timeout=20) as looked:
                lines = looked.iter_lines()
                assert next(lines) == "event: begin"
                second = httpx.get(asked, timeout=20)
                assert second.status_code == 400
                assert "the limit is one" in second.json()["error"]["message"]
            end = time.monotonic() + 20
            while not all(stream.closed for stream in request.streams):
                assert time.monotonic() < end
                time.sleep(0.02)
