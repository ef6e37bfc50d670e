"""`pellucid serve` with replicas on a Ray cluster, in a process that tests can kill."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

SECONDS = 90


@contextmanager
def ray_nodes(count: int, cpus: int) -> Iterator[Any]:
    """A Ray cluster of ``count`` nodes on this machine. Retries, because nodes may fail to start on a busy machine."""
    from ray.cluster_utils import Cluster

    for attempt in range(3):
        made = Cluster(initialize_head=False)
        try:
            made.add_node(num_cpus=0)
            for _ in range(count):
                made.add_node(num_cpus=cpus)
            break
        except Exception:
            made.shutdown()  # type: ignore[no-untyped-call]
            if attempt == 2:
                raise
            time.sleep(5)
    try:
        yield made
    finally:
        made.shutdown()  # type: ignore[no-untyped-call]


class ClusterServer:
    """`pellucid serve` with replicas on a cluster. ``said`` collects its standard error as it runs."""

    def __init__(self, model: Path, address: str, *more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = address
        self.url, self.said = f"http://127.0.0.1:{port}", list[str]()
        command = [sys.executable, "-m", "pellucid", "serve", str(model), "--port", str(port), "--cluster", address]
        self.process = subprocess.Popen([*command, "--replica-cpus", "1", *more], stderr=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key="none", timeout=SECONDS, max_retries=0)
        self.path, self.model = model, model.stem

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)

    def pids(self) -> list[int]:
        """Process ids of the replicas: of each replica the process that was started last."""
        found = [re.match(r"(replica-\S+) is at .*process (\d+)", line) for line in self.said]
        return list({one[1]: int(one[2]) for one in found if one}.values())

    def up(self) -> int:
        text = httpx.get(self.url + "/metrics", timeout=SECONDS).text
        return sum(line.endswith(" 1.0") for line in text.splitlines() if line.startswith("pellucid:replica_up"))

    def wait(self, count: int) -> None:
        """Wait until ``count`` replicas are up and run. The server may not know yet that a process was killed."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, "".join(self.said)
            try:
                if self.up() >= count <= sum(map(runs, self.pids())):
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise TimeoutError("".join(self.said))

    def kill(self) -> int:
        """Kill a random running replica. Returns its process id."""
        alive = [pid for pid in self.pids() if runs(pid)]
        pid = random.choice(alive)
        os.kill(pid, signal.SIGKILL)
        return pid

    def streamed(self, prompt: str, tokens: int, seed: int, kill: Callable[[], object]) -> str:
        """Stream a completion and call ``kill`` once in the middle. Returns the text."""
        text, killed = "", False
        stream = self.client.completions.create(
            model=self.model, prompt=prompt, max_tokens=tokens, seed=seed, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        for event in stream:
            text += event.choices[0].text
            if len(text) > 40 and not killed:
                kill()
                killed = True
        assert killed
        return text

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.client.close()


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
