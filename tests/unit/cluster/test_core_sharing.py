"""Models of a server share the cores of a cluster; replicas of an earlier server are used or end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from support.ray_server import SECONDS, ClusterServer, ray_nodes, runs

from pellucid.cluster import ingress
from pellucid.cluster.ingress import CoreSharing, warn_about_cores
from pellucid.cluster.ray_actors import ReplicaSettings
from pellucid.serve.guard import AccessRules
from pellucid.serve.pool import ModelPool
from pellucid.testing import random_model


class Replicas:
    """The supervisor of a model with idle replicas, and requests that wait for replicas."""

    def __init__(self, idle: int = 0, *, waits: bool = False, lacks: bool = False, running: int = 0) -> None:
        self.left, self.waits, self.lacks, self.cores, self.added = idle, waits, lacks, 2, 0
        self.starves = waits and not running
        self.fleet = SimpleNamespace(running=running, waiting=0)

    async def give_back(self) -> bool:
        if self.left < 2:
            return False
        self.left -= 1
        return True

    def restore(self) -> None:
        self.added += 1


def shared(models: dict[str, Replicas], cores: float = 0.0, rounds: int = 1) -> ModelPool:
    """The pool of models, in the order of their last use, after some checks. ``cores`` are free at the first answer.

    Ray has placed a replica on the cores of an ended replica before each round but the first.
    """
    seconds, answers, over = 0.0, 0, threading.Event()

    def free() -> float:
        nonlocal answers
        answers += 1
        if answers > 1:
            over.wait(60)
        return cores

    async def main() -> ModelPool:
        nonlocal seconds
        pool = ModelPool(list(models), lambda name: pytest.fail(name), 1 << 62, local=False)
        for name in models:
            if not models[name].waits:
                pool.put(name, SimpleNamespace(weight_bytes=1, close=lambda: None))  # type: ignore[arg-type]
        may_check, checked = asyncio.Semaphore(0), asyncio.Semaphore(0)

        class Sharing(CoreSharing):
            async def share(self) -> None:
                await may_check.acquire()
                await super().share()
                checked.release()

        sharing = Sharing(pool, free)
        sharing.supervisors.update(models)  # type: ignore[arg-type]
        running = asyncio.ensure_future(sharing.run())
        for number in range(rounds):
            seconds = number * (ingress.PLACES + 1)
            checks = 2
            while checks:
                may_check.release()
                await checked.acquire()
                checks -= answers > 1  # the first answer is known
        running.cancel()
        return pool

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingress, "time", SimpleNamespace(monotonic=lambda: seconds))
        patch.setattr(ingress, "LOOKS", 0.001)
        patch.setattr(ingress, "HEAD_LATE", math.inf)
        try:
            return asyncio.run(asyncio.wait_for(main(), 30))
        finally:
            over.set()


def test_the_least_recently_used_model_gives_its_idle_replicas() -> None:
    models = {"old": Replicas(3), "new": Replicas(3), "wants": Replicas(waits=True)}
    assert shared(models, rounds=2).loaded == ["old", "new"]
    assert (models["old"].left, models["new"].left) == (1, 3)
    assert shared(models, rounds=1).loaded == ["new"], "the last replica ends with its model"


def test_a_model_with_requests_keeps_a_replica() -> None:
    models = {"busy": Replicas(1, running=1), "wants": Replicas(waits=True)}
    assert shared(models, rounds=3).loaded == ["busy"]


def test_a_model_that_wants_more_replicas_stops_no_model_between_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"idle": Replicas(3), "wants": Replicas(1, waits=True, running=9)}
    shared(models)
    assert models["idle"].left == 3
    monkeypatch.setattr(ingress, "QUIET", 1e-9)
    shared(models)
    assert models["idle"].left == 2


def test_nothing_ends_while_no_model_waits() -> None:
    models = {"old": Replicas(3), "new": Replicas(1)}
    assert shared(models, rounds=3).loaded == ["old", "new"]
    assert models["old"].left == 3


def test_replicas_come_back_when_cores_are_free() -> None:
    models = {"old": Replicas(1, lacks=True), "new": Replicas(1)}
    shared(models, cores=1.0)
    assert models["old"].added == 0
    shared(models, cores=2.0, rounds=3)
    assert models["old"].added == 1, "the number of free cores is asked again before the next"
    models["new"].waits = True
    shared(models, cores=8.0)
    assert models["old"].added == 1


def test_a_head_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ingress, "HEAD_LATE", 0.2)
    monkeypatch.setattr(ingress, "LOOKS", 0.02)
    answers = True

    def free() -> float:
        while not answers:
            time.sleep(0.01)
        return 1.0

    async def main() -> None:
        nonlocal answers
        pool = ModelPool(["a"], lambda name: pytest.fail(name), 1 << 62, local=False)
        task = asyncio.ensure_future(CoreSharing(pool, free).run())
        for state in (True, False, True):
            answers = state
            while not pool.clustered or (pool.degraded is None) is not state:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(main(), 30))
    assert capsys.readouterr().err.splitlines() == [ingress.HEAD_DOWN, "Ray's head answers again"]


def test_a_warning_about_cores(capsys: pytest.CaptureFixture[str]) -> None:
    one = ReplicaSettings("a", cpus=2, least=2, most=2)
    warn_about_cores({"a": one}, {"CPU": 4.0})
    assert capsys.readouterr().err == ""
    warn_about_cores({"a": one, "b": one}, {"CPU": 4.0})
    line = capsys.readouterr().err
    assert line.startswith("2 models with 2 replicas of 2 cores need 8 cores, and the cluster has 4: idle replicas end")
    warn_about_cores({"a": one}, {})
    assert capsys.readouterr().err.startswith("2 replicas of 2 cores need 4 cores, and the cluster has 0: add machines")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")
def test_a_hangup_before_the_server_runs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from pellucid.cli.serving_options import Replicas as Options
    from pellucid.serve.server import Settings
    from pellucid.trace.control_vector import NO_VECTORS

    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr(ingress, "serve_cluster", lambda *_: os.kill(os.getpid(), signal.SIGHUP))
    try:
        Options("auto", 1, 1, 1, 1).serve({}, 1, NO_VECTORS, AccessRules(), Settings("127.0.0.1", 0, 1.0))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "SIGHUP: the replicas are starting" in capfd.readouterr().err


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes(2, 1) as made:
        yield made


def until(found: Callable[[], bool], server: ClusterServer) -> None:
    end = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < end, "".join(server.said)
        time.sleep(0.1)


def asked(server: ClusterServer, model: str) -> None:
    body = {"model": model, "prompt": "the cat", "max_tokens": 4}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=SECONDS)
    assert answer.status_code == 200, (answer.text, server.said)
    until(lambda: httpx.get(server.url + "/ready").json() == {"status": "ok", "waiting": []}, server)


@pytest.mark.slow
def test_models_take_turns_on_too_few_cores(nodes: Any, llama_file: Path, tmp_path: Path) -> None:
    random_model("llama", tmp_path / "other.gguf", layers=1)
    server = ClusterServer(llama_file, nodes.address, "--replicas", "2", str(tmp_path / "other.gguf"))
    try:
        server.wait(2)
        for model in ("other", server.model, "other"):
            asked(server, model)
        assert any("2 models with 2 replicas of 1 core need 4 cores" in line for line in server.said)
        assert "pellucid:cluster_head_up 1.0" in httpx.get(server.url + "/metrics").text
    finally:
        server.close()


@pytest.mark.slow
def test_replicas_that_a_smaller_server_does_not_need_end(nodes: Any, llama_file: Path) -> None:
    first = ClusterServer(llama_file, nodes.address, "--replicas", "2")
    try:
        first.wait(2)
        before = first.pids()
        os.kill(first.process.pid, signal.SIGKILL)
        second = ClusterServer(llama_file, nodes.address, "--replicas", "1")
        try:
            until(lambda: sum(map(runs, before)) == 1, second)
            assert set(second.pids()) <= set(before)
            asked(second, second.model)
        finally:
            second.close()
    finally:
        first.close()
