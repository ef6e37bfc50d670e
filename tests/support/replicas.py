"""Replicas in processes of their own, which tests can end as a machine ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SECRET = "a secret of these tests alone"
PROGRAM = """
import asyncio, sys
import pellucid
from pellucid.cluster.replica import Replica
from pellucid.cluster.secret import ClusterSecret

async def main(path, name, secret, threads):
    llm = pellucid.load(path, threads=int(threads))
    replica = Replica(llm, ClusterSecret(secret), name)
    print(await replica.listen(), flush=True)
    await replica.serve()

asyncio.run(main(*sys.argv[1:]))
"""


class ReplicaProcess:
    """A replica of a model's file; ``address`` is where it listens."""

    def __init__(self, path: Path | str, name: str, secret: str = SECRET, threads: int = 1) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), name, secret, str(threads)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("tcp://"), self.process.stderr.read() if self.process.stderr else ""

    def kill(self) -> None:
        """End it at once, without a word."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def close(self) -> str:
        """End it, and return what it has said."""
        if self.process.poll() is None:
            self.process.kill()
        _, said = self.process.communicate()
        return said

    def __enter__(self) -> ReplicaProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
