"""Channels between stages deliver messages in order, unchanged and only from the peer, or fail with an error."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.cluster.channel import GREETING, GREETS, HEAD, STRANGERS, Listener, Receiver, Sender, drawn_key
from pellucid.cluster.lost import StageLost

KEY = drawn_key()


def connected(key: bytes = KEY) -> tuple[Sender, Receiver]:
    listener = Listener("127.0.0.1")
    sender = Sender(listener.address, key, 5)
    (receiver,) = listener.accept([key], 5)
    return sender, receiver


def received(receiver: Receiver, seconds: float = 5) -> bytes:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (message := receiver.receive()) is not None:
            return message
    raise AssertionError("no message has come")


def send_for_ever(sender: Sender) -> None:
    while True:
        sender.send(bytes(1000))
        time.sleep(0.01)


@pytest.fixture
def pair() -> Iterator[tuple[Sender, Receiver]]:
    sender, receiver = connected()
    yield sender, receiver
    sender.close()
    receiver.close()


class Between:
    """A proxy between a sender and a listener that records frames."""

    def __init__(self, to: str) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self.frames: list[bytes] = []

    def pass_on(self, count: int) -> None:
        """Read ``count`` frames and forward the first frame, the greeting."""
        with self._listening:
            connection, _ = self._listening.accept()
        self.out = socket.create_connection(self._to)
        with connection, connection.makefile("rb") as file:
            for _ in range(count):
                head = file.read(HEAD)
                self.frames.append(head + file.read(int.from_bytes(head, "little")))
        self.out.sendall(self.frames[0])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=6))
def test_messages_come_in_order(sizes: list[int]) -> None:
    sender, receiver = connected()
    sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]

    def send() -> None:
        for one in sent:
            sender.send(one)

    sending = threading.Thread(target=send)
    sending.start()
    assert [received(receiver) for _ in sent] == sent
    sending.join()
    assert receiver.receive() is None
    sender.close()
    with pytest.raises(StageLost, match="closed"):
        received(receiver)
    receiver.close()


def test_nobody_else_is_let_in(capfd: pytest.CaptureFixture[str]) -> None:
    listener = Listener("127.0.0.1")
    host, _, port = listener.address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(STRANGERS // 2)]
    wrong = Sender(listener.address, drawn_key(), 5)
    with socket.create_connection((host, int(port))) as other:
        other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    found: list[Receiver] = []
    keys = [KEY, drawn_key()]
    accepting = threading.Thread(target=lambda: found.extend(listener.accept(keys, 20)))
    accepting.start()
    second, first = Sender(listener.address, keys[1], 5), Sender(listener.address, keys[0], 5)
    accepting.join()
    first.send(b"first")
    second.send(b"second")
    assert [received(one) for one in found] == [b"first", b"second"]
    assert capfd.readouterr().err.count("a connection was refused") == 2
    with pytest.raises(ConnectionRefusedError):  # the listener is closed
        socket.create_connection((host, int(port)), 1)
    for one in (*silent, wrong, first, second, *found):
        one.close()


def test_the_rest_does_not_come() -> None:
    listener = Listener("127.0.0.1")
    sender = Sender(listener.address, KEY, 5)
    start = time.monotonic()
    with pytest.raises(StageLost, match="1 of the stages"):
        listener.accept([KEY, drawn_key()], 0.3)
    assert time.monotonic() - start < 3
    with pytest.raises(StageLost):
        send_for_ever(sender)
    sender.close()
    with pytest.raises(StageLost, match="does not answer"):
        Sender(listener.address, KEY, 1)
    with pytest.raises(StageLost):
        Listener("127.0.0.1").accept([KEY], 20, lambda: True)


@pytest.mark.parametrize("how", ["changed", "again", "out of order", "shortened"])
def test_what_was_changed_on_its_way_is_no_message(how: str) -> None:
    listener = Listener("127.0.0.1")
    between = Between(listener.address)
    passing = threading.Thread(target=between.pass_on, args=(4,))
    passing.start()
    sender = Sender(between.address, KEY, 5)
    for text in (b"one", b"two", b"three"):
        sender.send(text)
    (receiver,) = listener.accept([KEY], 5)
    passing.join()
    _, one, two, _ = between.frames
    if how == "changed":
        given = [one, two[:-1] + bytes([two[-1] ^ 1])]
    elif how == "again":
        given = [one, one]
    elif how == "shortened":
        given = [one, (17).to_bytes(HEAD, "little") + two[HEAD : HEAD + 17]]
    else:
        given = [one, between.frames[3]]
    between.out.sendall(b"".join(given))
    assert received(receiver) == b"one"
    with pytest.raises(StageLost, match="failed authentication"):
        received(receiver)
    for end in (sender, receiver, between.out):
        end.close()


def test_a_length_is_not_believed(pair: tuple[Sender, Receiver]) -> None:
    sender, receiver = pair
    sender._socket.sendall((1 << 28).to_bytes(HEAD, "little"))
    assert receiver.receive() is None
    assert len(receiver._buffer) < 1 << 20
    sender._socket.sendall(bytes(GREETING))
    assert receiver.receive() is None

    for length in (0, 15, 1 << 31):
        other, refusing = connected()
        other._socket.sendall(length.to_bytes(HEAD, "little") + bytes(64))
        with pytest.raises(StageLost, match="the limits are"):
            received(refusing)
        other.close()
        refusing.close()


def test_a_crowd_of_strangers_does_not_keep_a_stage_away() -> None:
    listener = Listener("127.0.0.1")
    host, _, port = listener.address.rpartition(":")
    found: list[Receiver] = []
    accepting = threading.Thread(target=lambda: found.extend(listener.accept([KEY], 20)))
    accepting.start()
    crowd = list[socket.socket]()
    for _ in range(3 * STRANGERS):
        crowd.append(socket.create_connection((host, int(port))))
        with contextlib.suppress(OSError):
            crowd[-STRANGERS if len(crowd) > STRANGERS else 0].send(b"x")
    time.sleep(GREETS + 0.5)
    sender = Sender(listener.address, KEY, 5)
    accepting.join(10)
    sender.send(b"here")
    assert received(found[0]) == b"here"
    for one in (*crowd, sender, *found):
        one.close()


def test_a_message_is_rehearsed_before_the_next(pair: tuple[Sender, Receiver]) -> None:
    """``rehearse`` gets only the last message, at most once. A busy machine may delay the rehearsal."""
    sender, receiver = pair
    last, heard = b"", list[bytes]()

    def rehearse(message: bytes) -> None:
        assert message == last
        heard.append(message)

    receiver.rehearse = rehearse
    for n in range(500):
        threading.Timer(0.02, sender.send, [b"%d" % n]).start()
        last = received(receiver)
        assert last == b"%d" % n
        if n > 10 and heard:
            break
    assert heard
    assert len(heard) == len(set(heard))
