"""Stages talk only to peers with the cluster's secret. A changed frame ends the session with an error."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from support.replicas import SECRET
from support.stages import PROMPT, staged, stages

from pellucid.cluster import wire
from pellucid.cluster.secret import ClusterSecret
from pellucid.cluster.stage_server import StageConnection, StageLost, receive, vectors_of
from pellucid.cluster.staged_runner import BACKLOG, StagedRunner
from pellucid.llm import LLM
from pellucid.plan.pipeline_stages import Border

GREETING, LONG = (64, 2)  # ZMTP 3.1 (RFC 37 of ZeroMQ): bytes of the greeting; the flag of a frame with a long size
Change = Callable[[bytes], list[bytes]]


class Between:
    """A proxy in front of a stage. ``change`` maps each encrypted frame in a ``direction`` to the frames passed on."""

    def __init__(self, to: str) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._to = socket.getaddrinfo(*to.removeprefix("tcp://").split(":"))[0][4]
        self.change: Change = lambda frame: [frame]
        self.direction = "in"
        self._open = list[socket.socket]()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed, or the stage is
            while True:
                self._open.append(peer := self._listening.accept()[0])
                self._open.append(stage := socket.create_connection(self._to[:2]))
                for pair, direction in (((peer, stage), "in"), ((stage, peer), "out")):
                    threading.Thread(target=self._pass_on, args=(*pair, direction), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError), source.makefile("rb") as file:
            for _ in range(GREETING):  # each side sends the rest after the other side's first bytes
                sink.sendall(file.read(1))
            while flags := file.read(1):
                size = file.read(8 if flags[0] & LONG else 1)
                frame = flags + size + file.read(int.from_bytes(size, "big"))
                is_message = b"\x07MESSAGE" in frame[:17]
                frames = self.change(frame) if is_message and direction == self.direction else [frame]
                sink.sendall(b"".join(frames))
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # ends a waiting accept, which close does not
        self._accepting.join()
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):  # its peer has ended it
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def flipped(frame: bytes) -> list[bytes]:
    return [frame[:-1] + bytes([frame[-1] ^ 1])]


def shortened(frame: bytes) -> list[bytes]:
    """Drop the last byte, and say so in the frame's size."""
    head = 9 if frame[0] & LONG else 2
    size = int.from_bytes(frame[1:head], "big") - 1
    return [frame[:1] + size.to_bytes(head - 1, "big") + frame[head:-1]]


def reordered() -> Change:
    held = list[bytes]()

    def change(frame: bytes) -> list[bytes]:
        held.append(frame)
        return held[::-1] if len(held) == 2 else ([] if len(held) < 2 else [frame])

    return change


CHANGES: dict[str, Callable[[], Change]] = {
    "flipped": lambda: flipped,
    "shortened": lambda: shortened,
    "repeated": lambda: lambda frame: [frame, frame],
    "reordered": reordered,
}


@pytest.fixture
def between(llama_file: Path) -> Iterator[Between]:
    """A proxy in front of the first of two stages."""
    with stages(llama_file, 2) as (server,):
        made = Between(server.address)
        yield made
        made.close()


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("name", CHANGES)
def test_changed_frames_end_the_session(
    name: str, direction: str, between: Between, llama_file: Path, alone: LLM
) -> None:
    expected = alone.generate(PROMPT, max_new_tokens=20, seed=1).ids
    with staged(llama_file, [between.address]) as llm:
        assert isinstance(llm.runner, StagedRunner)
        assert llm.generate(PROMPT, max_new_tokens=20, seed=1).ids == expected
        between.direction, between.change = direction, CHANGES[name]()
        with pytest.raises(StageLost, match="is gone"):
            llm.generate(PROMPT, max_new_tokens=20, seed=1)
        between.change = lambda frame: [frame]
        llm.runner.begin_all([between.address])
        assert llm.generate(PROMPT, max_new_tokens=20, seed=1).ids == expected


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_connection_that_ends_between_steps(direction: str, between: Between, llama_file: Path) -> None:
    """The next step fails, and calls of the cache do not block meanwhile."""
    with staged(llama_file, [between.address]) as llm:
        assert isinstance(llm.runner, StagedRunner)
        llm.generate(PROMPT, max_new_tokens=2)
        between.direction, between.change = direction, flipped
        time.sleep(2 * wire.HEARTBEAT / 1000)
        for _ in range(2 * BACKLOG):
            llm.runner.tell("clear")
        with pytest.raises(StageLost):
            llm.generate(PROMPT, max_new_tokens=2)
        for _ in range(2 * BACKLOG):
            llm.runner.tell("clear")


def test_changed_vectors_between_stages_end_the_session(three_blocks: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with stages(three_blocks, 3) as (first, second):
        between = Between(second.address)
        with staged(three_blocks, [first.address, between.address]) as llm:
            llm.generate(PROMPT * 8, max_new_tokens=2)
            between.change = lambda frame: flipped(frame) if len(frame) > 4096 else [frame]  # not the commands
            with pytest.raises(StageLost, match="has failed"):
                llm.generate("other " + PROMPT * 8, max_new_tokens=2)
        between.close()
    assert "is gone" in capfd.readouterr().err


def test_strangers_are_not_served(llama_file: Path, alone: LLM) -> None:
    """Peers without the secret get no answer, whatever they send, and disturb nobody."""
    expected = alone.generate(PROMPT, max_new_tokens=20, seed=1).ids
    hello = ["hello", wire.VERSION, 1 << 20, ""]
    context: zmq.Context[Any] = zmq.Context()
    with stages(llama_file, 2) as (server,), staged(llama_file, [server.address]) as llm:
        host, _, port = server.address.removeprefix("tcp://").rpartition(":")
        crowd = [socket.create_connection((host, int(port))) for _ in range(200)]
        for number, one in enumerate(crowd):
            one.sendall([b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 4000][number % 3])
        other = StageConnection(context, ClusterSecret("another secret of somebody"), server.address)
        other.send(hello)
        with pytest.raises(StageLost):
            receive([other], time.monotonic() + 1)
        for knows_public_key in (False, True):
            stranger = context.socket(zmq.DEALER)
            if knows_public_key:
                stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
                stranger.curve_serverkey = ClusterSecret(SECRET).replica.public
            stranger.connect(server.address)
            with contextlib.suppress(zmq.Again):  # the server has ended the connection already
                stranger.send(wire.pack([hello]), zmq.NOBLOCK)
            assert not stranger.poll(500)
            stranger.close(linger=0)
        assert llm.generate(PROMPT, max_new_tokens=20, seed=1).ids == expected
        for one in crowd:
            one.close()
    context.destroy(linger=0)


def test_peers_with_the_secret_are_bounded(llama_file: Path, alone: LLM) -> None:
    """A lead keeps its session beside a lead of another version, oversized frames, and commands of an earlier lead."""
    expected = alone.generate(PROMPT, max_new_tokens=20, seed=1).ids
    context: zmq.Context[Any] = zmq.Context()
    with stages(llama_file, 2) as (server,), staged(llama_file, [server.address]) as llm:
        other = StageConnection(context, ClusterSecret(SECRET), server.address)
        other.send(["hello", wire.VERSION + 1, 1 << 20, ""])
        with pytest.raises(StageLost, match="of the protocol"):
            receive([other], time.monotonic() + 10)
        other.send(["clear"], ["step", 1, []], ["nothing"])
        other.socket.send(bytes(wire.MAX_FRAME + 1))
        with pytest.raises(StageLost, match="is gone"):
            receive([other], time.monotonic() + 10)
        assert llm.generate(PROMPT, max_new_tokens=20, seed=1).ids == expected
    context.destroy(linger=0)


def test_vectors_of_other_shapes_are_refused() -> None:
    borders = (Border("a", 4), Border("b", 2))
    rows = [np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((3, 2), np.float32)]
    sent = [wire.array_fields(one) for one in rows]
    assert all(np.array_equal(a, b) for a, b in zip(vectors_of(sent, borders, 3), rows))
    for bad in (sent[:1], sent[::-1], [*sent, sent[0]], [wire.array_fields(one.astype(np.float64)) for one in rows]):
        with pytest.raises(wire.WireError, match="this step needs"):
            vectors_of(bad, borders, 3)
    with pytest.raises(wire.WireError):
        vectors_of(sent, borders, 2)
