"""Messages between ingress and replicas, and refused peers: wrong secrets, other protocols, oversized frames."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st
from support.replicas import SECRET, ReplicaProcess

from pellucid import errors
from pellucid.cluster import replica_tasks, wire
from pellucid.cluster.fleet import Fleet
from pellucid.cluster.remote_trace import RequestWatch
from pellucid.cluster.secret import MOST_LINES, SECONDS, ClusterSecret, RefusalLog
from pellucid.engine.output import TokenOutput
from pellucid.engine.request import PromptOutput
from pellucid.errors import InvalidRequest, PellucidError
from pellucid.llm import LLM
from pellucid.sample.logprobs import TokenLogprobs
from pellucid.trace import ablate, call, replace, scale


@pytest.mark.parametrize("of", ["logits", "both"])
def test_tokens_stay_what_they_are(alone: LLM, of: str) -> None:
    made: list[TokenOutput] = []
    group = alone.request(
        "the cat", max_new_tokens=5, seed=1, logprobs=3, watch=True, prompt_logprobs=2, top_k=9, logprobs_of=of
    )
    group.start(made.append)
    group.wait()
    for token in made:
        (message,) = wire.unpack(wire.pack([["token", *wire.token_fields(token)]]))
        back = wire.token_of(message[1:])
        plain = [name for name in token.__struct_fields__ if name != "logprobs"]
        assert [getattr(back, name) for name in plain] == [getattr(token, name) for name in plain]
        assert isinstance(back.logprobs, TokenLogprobs)
        for name, value in vars(token.logprobs).items():
            assert np.array_equal(getattr(back.logprobs, name), value)
    (message,) = wire.unpack(wire.pack([["facts", *wire.facts_fields(group.prompt_output)]]))
    facts = wire.facts_of(message[1:])
    assert (facts.cached, facts.queue) == (group.prompt_output.cached, group.prompt_output.queue)
    assert facts.logprobs is not None
    for name, value in vars(group.prompt_output.logprobs).items():
        assert np.array_equal(getattr(facts.logprobs, name), value)
    assert wire.facts_of(wire.facts_fields(PromptOutput(3, 0.5))) == PromptOutput(3, 0.5)


def test_beams_stay_what_they_are(alone: LLM) -> None:
    found = alone.beam_search("the cat", num_beams=3, max_new_tokens=6)
    (message,) = wire.unpack(wire.pack([["done", wire.beams_fields(found)]]))
    assert wire.beams_of(message[1], found.chain).as_dict() == found.as_dict()


def test_edits_stay_what_they_are() -> None:
    values = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    for edit in (ablate("a"), scale("b[heads=1]", 1 / 3), replace("c", values), ablate("d", values.tolist())):
        (message,) = wire.unpack(wire.pack([["edit", wire.edit_fields(edit)]]))
        back = wire.edit_of(message[1])
        assert (back.where, back.factor, back.function) == (edit.where, edit.factor, None)
        assert (back.values is None) == (edit.values is None)
        if edit.values is not None:
            assert np.array_equal(back.values, values)
    with pytest.raises(InvalidRequest, match="cannot be sent"):
        wire.edit_fields(call("a", abs))


@given(st.integers(0, 3), st.integers(-1, 1))
def test_pieces_are_the_whole(count: int, more: int) -> None:
    whole = bytes(max(0, count * wire.PIECE + more))
    found = list(wire.pieces(whole))
    assert b"".join(piece for piece, _ in found) == whole
    assert [more for _, more in found] == [True] * (len(found) - 1) + [False]
    assert all(len(piece) <= wire.PIECE for piece, _ in found)


@given(st.binary(max_size=200))
def test_bytes_from_elsewhere_are_messages_or_refused(frame: bytes) -> None:
    try:
        found = wire.unpack(frame)
    except wire.WireError:
        return
    assert all(isinstance(one[0], str) for one in found)


def test_arrays_that_are_none_are_refused() -> None:
    for fields in (["<f4", [3], b"1234"], ["O", [1], b"12345678"], ["x", [1], b""], ["<f4", [-1, -1], b""], [1, 2, 3]):
        with pytest.raises(wire.WireError):
            wire.array_of(fields)


def test_errors_keep_their_class() -> None:
    for name, kind in vars(errors).items():
        if not (isinstance(kind, type) and issubclass(kind, PellucidError)) or name == "FileFormatError":
            continue
        back = wire.error_of(wire.error_fields(kind("what is wrong")))
        assert (type(back), str(back)) == (kind, "what is wrong")
    assert type(wire.error_of(["os.system", "rm"])) is errors.KernelError
    assert "ZeroDivisionError" in str(wire.error_of(wire.error_fields(ZeroDivisionError("x"))))


def test_a_secret_is_long_and_never_printed() -> None:
    with pytest.raises(InvalidRequest, match="5 characters"):
        ClusterSecret("short")
    one, other = ClusterSecret(SECRET), ClusterSecret(SECRET + "!")
    assert SECRET not in repr(one)
    assert one.replica != other.replica
    assert one.replica.secret != one.ingress.secret
    assert ClusterSecret(SECRET).replica == one.replica
    assert ClusterSecret.drawn().text != ClusterSecret.drawn().text


def test_numbers_of_chains_are_few(alone: LLM) -> None:
    """Chain numbers of a peer with the secret are limited, so that they cannot exhaust memory."""

    async def asked(numbers: Any) -> None:
        body = {
            "prompt": [1, 2], "options": {"max_new_tokens": 2}, "edits": [], "probes": [], "watch": [],
            "numbers": numbers, "begun": {}, "read": 2, "priority": 0, "deadline": None, "client": "",
        }  # fmt: skip
        told = list[tuple[Any, ...]]()
        await replica_tasks.generate(alone, body, lambda *more: told.append(more), RequestWatch(alone, lambda *_: None))
        assert [one[0] for one in told].count("token") == 2 * len(numbers)

    most = wire.MAX_SEQUENCES
    for numbers in (
        [10**9],
        [most],
        [-1],
        [0, 0],
        [0, 10**30],
        [],
        [True],
        [0.0],
        ["0"],
        {0: 0},
        "0",
        5,
        None,
        [0] * 10**6,
    ):
        with pytest.raises(wire.WireError, match="must be different numbers below 256"):
            asyncio.run(asked(numbers))
    asyncio.run(asked([0, most - 1]))


@given(st.lists(st.floats(0, 30), max_size=300))
def test_refusals_are_counted(gaps: list[float]) -> None:
    now, said = 0.0, list[str]()
    log = RefusalLog("a replica", said.append, lambda: now)
    for number, gap in enumerate(gaps):
        now += gap / 10
        log.add(str(number))
    now += SECONDS
    log.tell()
    more = [int(line.split()[2].replace(",", "")) for line in said if "more were refused" in line]
    assert len(said) - len(more) + sum(more) == log.count == len(gaps)
    assert len(said) <= (MOST_LINES + 1) * (1 + now // SECONDS)


def test_many_strangers_make_few_lines(llama_file: Path) -> None:
    # ZMTP 3.0 (RFC 23 of ZeroMQ): signature, version, mechanism, whether it is a server, filler.
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    with ReplicaProcess(llama_file, "one") as replica:
        host, _, port = replica.address.removeprefix("tcp://").rpartition(":")
        for _ in range(200):
            with socket.create_connection((host, int(port)), 5) as one, suppress(ConnectionError):
                one.sendall(greeting)
                while one.recv(100):
                    pass
        said = replica.close().splitlines()
    assert MOST_LINES <= len(said) <= 3 * (MOST_LINES + 1), said


def test_who_is_refused_and_what_is_said(llama_file: Path) -> None:
    """Each peer is refused with one line, and the replica keeps serving."""

    async def asked(secret: str, seconds: float) -> bool:
        fleet = Fleet(ClusterSecret(secret))
        fleet.add(replica.address)
        try:
            await fleet.ready(seconds)
            return True
        except (asyncio.TimeoutError, TimeoutError):
            return False
        finally:
            await fleet.close()

    def stranger(*, knows_public_key: bool) -> None:
        """Connect a ZeroMQ socket without keys, or with keys of its own and the replica's public key."""
        context = zmq.Context()
        one = context.socket(zmq.DEALER)
        if knows_public_key:
            one.curve_publickey, one.curve_secretkey = zmq.curve_keypair()
            one.curve_serverkey = ClusterSecret(SECRET).replica.public
        one.linger = 0
        one.connect(replica.address)
        one.send(wire.pack([["hello", wire.VERSION, "x"]]))
        assert not one.poll(300)
        context.destroy(linger=0)

    def foreign(text: bytes) -> None:
        host, _, port = replica.address.removeprefix("tcp://").rpartition(":")
        with socket.create_connection((host, int(port)), 5) as one:
            one.sendall(text)
            time.sleep(0.3)

    def signed(*frames: bytes) -> None:
        """Send invalid messages with the secret."""
        context = zmq.Context()
        one = context.socket(zmq.DEALER)
        one.linger = 1000
        keys, theirs = ClusterSecret(SECRET).ingress, ClusterSecret(SECRET).replica
        one.curve_secretkey, one.curve_publickey, one.curve_serverkey = (keys.secret, keys.public, theirs.public)
        one.connect(replica.address)
        for frame in frames:
            one.send(frame)
        time.sleep(0.5)
        context.destroy(linger=1000)

    with ReplicaProcess(llama_file, "one") as replica:
        assert not asyncio.run(asked("another secret of somebody", 1.0))
        stranger(knows_public_key=False)
        stranger(knows_public_key=True)
        foreign(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        foreign(b"\xff" * 4000)
        bad = [
            b"no MessagePack \xc1",
            msgpack.packb({"a": 1}),
            msgpack.packb([["hello", 99, "s"]]),
            msgpack.packb([["run", 1, "eval", {}]]),
            msgpack.packb([["run", 2, "__class__", {}]]),
            msgpack.packb([["nothing"]]),
            msgpack.packb([["run", "x"]]),
        ]
        signed(*bad)
        signed(b"0" * (wire.MAX_FRAME + 1))
        assert asyncio.run(asked(SECRET, 10.0)), "the replica goes on"
        said = replica.close().splitlines()
    refused = [line for line in said if "a connection was refused" in line]
    assert 1 <= len(refused) <= 40, said  # ZeroMQ retries by itself
    assert sum("a message was refused" in line for line in said) == len(bad)
    assert all(len(line) < 400 for line in said)
    assert not any("Traceback" in line for line in said)
