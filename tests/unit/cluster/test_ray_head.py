"""Without Ray's head node or free CPUs, running requests continue and the server reports the problem."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from support.ray_server import SECONDS, ClusterServer, ray_nodes

from pellucid.cluster.ingress import HEAD_DOWN
from pellucid.llm import LLM

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "
GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "scale-out.md"


def until(found: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Any]:
    """Ray nodes, started as in the guide."""
    wanted = {
        "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": str(tmp_path / "head"),
    }
    assert all(f"{name}=" in GUIDE.read_text() for name in wanted)
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        with ray_nodes(2, 1) as made:
            yield made
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_requests_go_on_without_the_head_of_ray(nodes: Any, llama_file: Path, alone: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0, "ignore_eos": True}
    wanted = alone.generate(PROMPT, max_new_tokens=900, seed=4, **options).text
    server = ClusterServer(llama_file, nodes.address, "--replicas", "2")
    try:
        server.wait(2)
        assert server.streamed(PROMPT, 900, 4, nodes.head_node.kill_gcs_server) == wanted
        assert server.streamed(PROMPT, 900, 4, server.kill) == wanted
        until(lambda: server.up() == 1)
        for _ in range(20):  # requests do not wait for the head
            assert httpx.get(server.url + "/ready", timeout=20).status_code == 200
            time.sleep(0.1)
        until(lambda: httpx.get(server.url + "/ready").json().get("problem") == HEAD_DOWN)
        assert "pellucid:cluster_head_up 0.0" in httpx.get(server.url + "/metrics").text
        assert server.streamed(PROMPT, 900, 4, nodes.head_node.start_gcs_server) == wanted
        server.wait(2)  # the lost replica is started again
        until(lambda: httpx.get(server.url + "/ready").json() == {"status": "ok", "waiting": []})
        assert "pellucid:cluster_head_up 1.0" in httpx.get(server.url + "/metrics").text
    finally:
        server.close()
    assert not any("Traceback" in line for line in server.said)


def test_replicas_without_room(nodes: Any, llama_file: Path) -> None:
    server = ClusterServer(llama_file, nodes.address, "--replicas", "4")
    try:
        server.wait(2)
        until(
            lambda: any(
                "2 of 4 placed: each of the others needs a machine with 1 free core" in line for line in server.said
            )
        )
        assert httpx.get(server.url + "/ready").json() == {"status": "ok", "waiting": []}
        nodes.add_node(num_cpus=2)
        until(lambda: any("4 of 4 placed" in line for line in server.said))
    finally:
        server.close()


def test_without_a_replica_a_server_lives_and_is_not_ready(nodes: Any, llama_file: Path) -> None:
    server = ClusterServer(llama_file, nodes.address, "--replica-cpus", "2")
    try:
        until(lambda: any(line.startswith("serving") for line in server.said))
        until(lambda: any("0 of 1 placed" in line for line in server.said))
        assert httpx.get(server.url + "/health").status_code == 200
        missing = httpx.get(server.url + "/ready")
        assert (missing.status_code, missing.json()) == (503, {"status": "waiting", "waiting": [server.model]})
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) in (0, signal.SIGTERM, -signal.SIGTERM)  # Ray may return the signal
    finally:
        server.close()
