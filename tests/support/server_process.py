"""`pellucid serve` in its own process, optionally with a limit on open files, and requests as raw bytes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 60


class ServerProcess:
    """A server process. ``said`` collects its standard error; ``files`` limits its open files."""

    def __init__(self, *arguments: str | Path, files: int | None = None) -> None:
        command = [sys.executable, "-m", "pellucid", "serve", *map(str, arguments)]
        limit = f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files})); "
        limit += "os.execv(sys.argv[1], sys.argv[1:])"
        if files is not None:
            command = [sys.executable, "-c", limit, *command]
        self.process = subprocess.Popen([*command, "--port", "0", "--threads", "1"], stderr=subprocess.PIPE, text=True)
        self.said, self._listens = list[str](), threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._listens.wait(SECONDS), "".join(self.said)
        line = next((one for one in self.said if " at http" in one), "")
        assert line, "".join(self.said)
        self.url = line.split()[-1]
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.address = host, int(port)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if " at http" in line:
                self._listens.set()
        self._listens.set()

    def connect(self, data: bytes = b"", timeout: float = SECONDS) -> socket.socket:
        """Open a connection and send ``data``."""
        made = socket.create_connection(self.address, timeout)
        made.sendall(data)
        return made

    def ask(self, data: bytes, timeout: float = SECONDS) -> bytes:
        """Send ``data`` and return all bytes that arrive until the server closes the connection."""
        with self.connect(data, timeout) as one:
            return received(one)

    def end(self) -> None:
        """Ask the server to end (SIGTERM)."""
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Kill the server if it runs, and wait for its end."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(SECONDS)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def server_process(*arguments: str | Path, files: int | None = None) -> Iterator[ServerProcess]:
    """Run a server until the block ends."""
    made = ServerProcess(*arguments, files=files)
    try:
        yield made
    finally:
        made.close()


def received(connection: socket.socket) -> bytes:
    """All bytes until the peer closes the connection. A reset counts as a close."""
    parts = list[bytes]()
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def status(answer: bytes) -> int:
    """HTTP status of an answer; 0 if there is no answer."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def body(answer: bytes) -> bytes:
    """The body of an answer."""
    return answer.partition(b"\r\n\r\n")[2]
