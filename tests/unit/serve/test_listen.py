"""Ports: another program cannot listen at the same port, on any system."""

from __future__ import annotations

import socket

import pytest

from pellucid.errors import InvalidRequest
from pellucid.serve.server import Settings, listen


def test_a_port_in_use_is_refused() -> None:
    first = listen(Settings("127.0.0.1", 0, 1.0))
    try:
        with pytest.raises(InvalidRequest, match="choose another --host or --port"):
            listen(Settings("127.0.0.1", first.getsockname()[1], 1.0))
    finally:
        first.close()


def test_a_port_is_exclusive_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    exclusive, asked = 5, list[int]()  # the number of SO_EXCLUSIVEADDRUSE is ~SO_REUSEADDR on Windows

    class Socket(socket.socket):
        def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
            asked.append(option)

    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", exclusive, raising=False)
    monkeypatch.setattr(socket, "socket", Socket)
    listen(Settings("127.0.0.1", 0, 1.0)).close()
    assert asked == [exclusive]
