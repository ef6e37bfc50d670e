"""End to end on Ray: several nodes, a server, real clients, and replicas that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ray = pytest.importorskip("ray", reason="pip install 'pellucid[cluster]'")

from support.ray_server import SECONDS, ClusterServer, ray_nodes, runs  # noqa: E402

from pellucid.llm import LLM  # noqa: E402

pytestmark = pytest.mark.slow
PROMPT = "the cat sat on the mat, and "


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes(2, 1) as made:
        yield made


@pytest.fixture(scope="module")
def server(nodes: Any, llama_file: Path) -> Iterator[ClusterServer]:
    made = ClusterServer(llama_file, nodes.address, "--replicas", "2")
    try:
        made.wait(2)
        yield made
    finally:
        made.close()


def test_a_stream_outlives_the_machine_that_makes_it(server: ClusterServer, alone: LLM) -> None:
    wanted = alone.generate(
        PROMPT, max_new_tokens=900, seed=4, ignore_eos=True, temperature=1.0, top_p=1.0, top_k=0, min_p=0
    )

    def kill() -> None:
        alive = next(pid for pid in server.pids() if runs(pid))
        os.kill(alive, signal.SIGKILL)

    text = server.streamed(PROMPT, 900, 4, kill)
    assert text == wanted.text
    server.wait(2)  # Ray has started another replica


def test_a_schema_holds_across_machines(server: ClusterServer, alone: LLM) -> None:
    schema = {
        "type": "object", "required": ["a"], "additionalProperties": False,
        "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 60, "maxItems": 60}},
    }  # fmt: skip
    wanted = alone.generate(
        PROMPT, json_schema=schema, seed=5, max_new_tokens=1500, top_p=1.0, temperature=1.0, top_k=0, min_p=0
    )
    timer = threading.Timer(0.15, server.kill)
    timer.start()
    made = server.client.completions.create(
        model=server.model, prompt=PROMPT, max_tokens=1500, seed=5, extra_body={"json_schema": schema}
    )
    timer.join()
    assert made.choices[0].text == wanted.text
    assert len(json.loads(made.choices[0].text)["a"]) == 60
    server.wait(2)


@pytest.mark.parametrize(("count", "seconds", "least"), [(40, 6, 1), pytest.param(120, 15, 4, marks=pytest.mark.long)])
def test_clients_lose_nothing_while_machines_end(
    server: ClusterServer, alone: LLM, count: int, seconds: float, least: int
) -> None:
    """``count`` streamed and complete answers, begun within ``seconds``; replicas are killed one after the other.

    Between two kills a fifth of the answers completes: on a slow machine, a request could otherwise lose three replicas
    before its next token, and the server would rightly give it up.
    """
    rng = random.Random(7)
    bodies = [
        {"prompt": PROMPT * rng.randint(1, 6) + str(n % 5), "max_tokens": rng.randint(50, 900), "seed": n}
        for n in range(count)
    ]
    plain: dict[str, Any] = {"ignore_eos": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0}
    wanted = [alone.generate(b["prompt"], max_new_tokens=b["max_tokens"], seed=b["seed"], **plain).text for b in bodies]
    waits = [rng.random() * seconds for _ in range(count)]
    found: list[str | None] = [None] * count
    ended, kills = threading.Event(), list[str]()
    patient = server.client.with_options(timeout=10 * SECONDS)  # kills are many where answers are slow

    def killer() -> None:
        needed = 0
        while not ended.wait(0.2):
            answers = sum(text is not None for text in found)
            if answers >= needed and any(map(runs, server.pids())):
                needed = answers + count // 5
                server.kill()
                kills.append(server.url)

    def ask(number: int) -> None:
        try:
            asked(number)
        except Exception as error:
            found[number] = repr(error)

    def asked(number: int) -> None:
        time.sleep(waits[number])
        body = dict(model=server.model, extra_body={"ignore_eos": True}, **bodies[number])
        if number % 2:
            parts = patient.completions.create(stream=True, **body)
            found[number] = "".join(part.choices[0].text for part in parts)
        else:
            found[number] = patient.completions.create(**body).choices[0].text

    asking = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    ending = threading.Thread(target=killer)
    for one in (*asking, ending):
        one.start()
    for one in asking:
        one.join()
    ended.set()
    ending.join()
    assert found == wanted
    assert len(kills) >= least
    server.wait(2)


def test_a_server_that_is_started_again_gives_the_rest(nodes: Any, server: ClusterServer, alone: LLM) -> None:
    """A client that has lost its connection sends the id of the last event that it received."""
    wanted = alone.generate(
        PROMPT, max_new_tokens=1500, seed=9, ignore_eos=True, temperature=1.0, top_p=1.0, top_k=0, min_p=0
    )
    body = {"model": server.model, "prompt": PROMPT, "max_tokens": 1500, "seed": 9, "stream": True, "ignore_eos": True}
    text, last = "", ""

    def read(url: str, headers: dict[str, str], most: int) -> None:
        nonlocal text, last
        with httpx.stream("POST", url + "/v1/completions", json=body, headers=headers, timeout=SECONDS) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    last = line[4:]
                elif line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                if len(text) > most:
                    return

    read(server.url, {}, 60)
    assert 0 < len(text) < len(wanted.text)
    other = ClusterServer(server.path, nodes.address, "--replicas", "2")
    try:
        other.wait(2)
        assert set(other.pids()) == set(server.pids()[-2:]), "it finds the replicas that run"
        read(other.url, {"Last-Event-ID": last}, 1 << 30)
        assert text == wanted.text
        whole = httpx.post(other.url + "/v1/completions", json={**body, "stream": False}, timeout=SECONDS).json()
        assert whole["choices"][0]["text"] == wanted.text
    finally:
        os.kill(other.process.pid, signal.SIGKILL)  # both servers use the same replicas
        other.close()
    server.wait(2)


def test_replicas_are_replaced_while_they_are_asked(server: ClusterServer, alone: LLM) -> None:
    if not hasattr(signal, "SIGHUP"):
        pytest.skip("no SIGHUP")
    wanted = alone.generate(
        PROMPT, max_new_tokens=30, seed=1, ignore_eos=True, temperature=1.0, top_p=1.0, top_k=0, min_p=0
    )
    before = set(server.pids())
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + SECONDS
    while any(runs(pid) for pid in before):
        assert time.monotonic() < end
        made = server.client.completions.create(
            model=server.model, prompt=PROMPT, max_tokens=30, seed=1, extra_body={"ignore_eos": True}
        )
        assert made.choices[0].text == wanted.text
    server.wait(2)
    assert not before & set(server.pids()[-2:])


ORPHAN = """
import os, re, signal, sys, time
import ray
from pellucid.cluster.ray_actors import ReplicaActor, ReplicaSettings
from pellucid.cluster.secret import ClusterSecret

address, model, ended = sys.argv[1:]
ray.init(address=address, namespace="pellucid", log_to_driver=False, logging_level="ERROR")
options = dict(name="orphan", namespace="pellucid", lifetime="detached", num_cpus=0, max_restarts=-1)
actor = ray.remote(ReplicaActor).options(**options).remote(
    ReplicaSettings(model), ClusterSecret.drawn().text, "orphan", 3.0
)
loading = actor.listen.remote()
while not ray.wait([loading], timeout=0.5)[0]:
    actor.waited_for.remote()  # as a server does
_, _, where = ray.get(loading)
os.kill(int(re.search(r"process (\\d+)", where)[1]), signal.SIGKILL)  # Ray starts it again; nobody asks for it
ray.kill(ray.get_actor(ended))  # one of a server, which has to make another one
end, there = time.monotonic() + 60, True
while there and time.monotonic() < end:
    time.sleep(0.2)
    try:
        ray.get_actor("orphan")
    except ValueError:
        there = False
print("there" if there else "gone")
"""


def test_replicas_that_have_ended_for_good(nodes: Any, server: ClusterServer) -> None:
    """An idle replica ends by itself. The server replaces a lost replica at once."""
    name = next(line.split()[0] for line in reversed(server.said) if " is at " in line)
    command = [sys.executable, "-c", ORPHAN, nodes.address, str(server.path), name]
    made = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS)
    assert made.stdout.endswith("gone\n"), made.stderr
    end = time.monotonic() + SECONDS / 3
    while name in next(line.split()[0] for line in reversed(server.said) if " is at " in line):
        assert time.monotonic() < end, server.said
        time.sleep(0.1)
    server.wait(2)


def test_what_cannot_be_served(nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")

    def said(*more: str) -> str:
        command = [sys.executable, "-m", "pellucid", "serve", str(tmp_path / "no.gguf"), "--port", "0", *more]
        made = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert made.returncode == 2, made
        assert "Traceback" not in made.stderr
        return made.stderr

    assert "no.gguf" in said("--cluster", nodes.address)
    assert "no Ray cluster" in said("--cluster", "127.0.0.1:1")
    assert "--replicas 2 is for a cluster" in said("--replicas", "2")
    assert "replicas=0" in said("--cluster", nodes.address, "--replicas", "0")
