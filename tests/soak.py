"""Soak test of a server with many badly behaved clients: make test-soak.

    .venv/bin/python tests/soak.py [--model smollm2] [--clients 200] [--minutes 10] [--seed 0]

Clients use every API, read slowly, disconnect before or during an answer, and send invalid bodies. Every complete
answer must equal the answer to the same request alone. At the end no request runs and no page is in use, threads and
file handles are as at the start, and memory has grown by at most ``MORE_MEMORY``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 300  # seconds that a client waits: the machine may do other work
MORE_MEMORY = 64 << 20  # bytes that the allocator may keep after an hour of varied requests
POOL = 40  # threads that anyio keeps for blocking calls
TOPICS = ("the sea", "a river", "the moon", "bread", "a clock", "winter", "a song", "the road")
WRONG: tuple[Any, ...] = (
    b"{", b"[]", b"\xff\xfe", b"[" * 50_000, {}, {"model": "none"}, {"messages": 5}, {"messages": [{"role": 5}]},
    {"prompt": "a", "n": 10_000}, {"prompt": "a", "temperature": "hot"}, {"prompt": "a", "regex": "("},
    {"prompt": "a" * 100_000}, {"prompt": "a", "stop": [""] * 99}, {"prompt": [-1]}, {"input": {}},
)  # fmt: skip


@dataclass
class Soak:
    """The requests, their expected answers, and counts of the outcomes."""

    url: str
    model: str
    by: random.Random
    wanted: dict[str, Any] = field(default_factory=dict)
    happened: Counter[str] = field(default_factory=Counter)
    different: list[Any] = field(default_factory=list)

    def requests(self) -> list[tuple[str, dict[str, Any]]]:
        """The requests with known answers: (path, body)."""
        made: list[tuple[str, dict[str, Any]]] = []
        for number, topic in enumerate(TOPICS):
            asked = [{"role": "user", "content": f"Tell me about {topic}."}]
            tokens, seed = 8 + 8 * (number % 5), number
            common = {"model": self.model, "max_tokens": tokens, "seed": seed}
            made += [
                ("/v1/chat/completions", {**common, "messages": asked}),
                ("/v1/completions", {**common, "prompt": f"About {topic}: ", "temperature": 0, "logprobs": 1}),
                ("/v1/completions", {**common, "prompt": f"{topic} " * 60, "n": 2}),
                ("/v1/messages", {**common, "messages": asked}),
                ("/api/chat", {"model": self.model, "messages": asked, "stream": False,
                               "options": {"seed": seed, "num_predict": tokens}}),
                ("/v1/chat/completions", {**common, "messages": asked,
                                          "response_format": {"type": "json_schema", "json_schema": {
                                              "name": "x", "schema": {"enum": ["red", "green", topic]}}}}),
            ]  # fmt: skip
        return made

    async def alone(self, http: httpx.AsyncClient) -> None:
        """Send each request alone and record its answer."""
        for path, body in self.requests():
            answer = await http.post(path, json=body)
            assert answer.status_code == 200, (path, answer.text)
            self.wanted[key(path, body)] = content(answer.json())

    async def clients(self, count: int, seconds: float, seed: str) -> None:
        """Run ``count`` clients for ``seconds``."""
        until = time.monotonic() + seconds
        await asyncio.gather(*(self.client(until, random.Random(f"{seed} {n}")) for n in range(count)))

    async def client(self, until: float, by: random.Random) -> None:
        """Run one client until the time ``until``, with random behaviour."""
        known = self.requests()
        ways = (self.whole, self.whole, self.whole, self.stream, self.slow, self.leave, self.hang_up, self.wrong)
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE) as http:
            while time.monotonic() < until:
                way, (path, body) = by.choice(ways), by.choice(known)
                try:
                    await way(http, path, body, by)
                except httpx.HTTPError as error:
                    self.happened[f"error {type(error).__name__}"] += 1
                    self.different.append((way.__name__, path, body, repr(error)))

    async def whole(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        answer = await http.post(path, json=body)
        self.happened[f"whole {answer.status_code}"] += 1
        if answer.status_code == 200:
            self.compare(path, body, content(answer.json()))
        elif answer.status_code == 503:
            await asyncio.sleep(by.random())

    async def stream(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        if path != "/v1/chat/completions":
            return
        text = ""
        async with http.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                self.happened[f"stream {answer.status_code}"] += 1
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        self.happened["stream 200"] += 1
        self.compare(path, body, [text])

    async def slow(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        async with http.stream("POST", path, json={**body, "stream": path != "/v1/completions"}) as answer:
            async for _ in answer.aiter_bytes(32):
                await asyncio.sleep(by.random() / 20)
        self.happened["slow"] += 1

    async def leave(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        fields = {"stream": True, "options": {"num_predict": 500}, "max_tokens": 500, "logprobs": None, "n": 1}
        longer = {**body, **{name: value for name, value in fields.items() if name in body or name == "stream"}}
        async with http.stream("POST", path, json=longer) as answer:
            count = by.randint(1, 8)
            async for _ in answer.aiter_bytes(32):
                count -= 1
                if not count:
                    break
        self.happened["left"] += 1

    async def hang_up(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        host, port = self.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        writer.write((head + raw)[: by.choice((10, len(head), len(head) + 5, len(head) + len(raw)))])
        await writer.drain()
        await asyncio.sleep(by.random() / 10)
        writer.transport.abort()
        self.happened["hung up"] += 1

    async def wrong(self, http: httpx.AsyncClient, path: str, body: dict[str, Any], by: random.Random) -> None:
        bad = by.choice(WRONG)
        raw = bad if isinstance(bad, bytes) else json.dumps({"model": self.model, **bad}).encode()
        answer = await http.post(by.choice((path, "/v1/embeddings", "/tokenize", "/nothing")), content=raw)
        self.happened[f"wrong {answer.status_code}"] += 1
        if answer.status_code >= 500 and answer.status_code != 503:
            self.different.append((bad, answer.text))

    def compare(self, path: str, body: dict[str, Any], found: Any) -> None:
        if found != self.wanted[key(path, body)]:
            self.different.append((path, body, found, self.wanted[key(path, body)]))


def key(path: str, body: dict[str, Any]) -> str:
    return path + json.dumps(body, sort_keys=True)


def content(answer: dict[str, Any]) -> Any:
    """Texts of an answer, without fields that differ each time."""
    if "choices" in answer:
        return [one["message"]["content"] if "message" in one else one["text"] for one in answer["choices"]]
    return answer["content"] if "content" in answer else answer["message"]["content"]


def facts(process: int) -> dict[str, int]:
    """Number of threads, number of file handles and bytes of memory of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    values = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "threads": int(values["Threads"]),
        "handles": len(list(Path(f"/proc/{process}/fd").iterdir())),
        "memory": int(values["VmRSS"].split()[0]) << 10,
    }


def own_memory(url: str, process: int) -> int:
    """Memory of a process in bytes, without its prefix cache, which may grow to its limit."""
    return facts(process)["memory"] - int(gauge(url, "pellucid:prefix_cache_bytes"))


def gauge(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


async def run(asked: argparse.Namespace, url: str, process: int) -> int:
    first = facts(process)
    soak = Soak(url, asked.model, random.Random(asked.seed))
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        await soak.alone(http)
    # Warm up: fill the caches of connections and of the allocator.
    await asyncio.gather(
        *(soak.client(time.monotonic() + 20, random.Random(f"warm {n}")) for n in range(asked.clients))
    )
    await settled(url)
    before = {**facts(process), "memory": own_memory(url, process)}
    print(f"at the start: {before}", flush=True)
    await soak.clients(asked.clients, 60 * asked.minutes, str(asked.seed))
    await settled(url)
    after = {**facts(process), "memory": own_memory(url, process)}
    print(f"at the end: {after}")
    print(dict(sorted(soak.happened.items())))
    problems = [f"different: {one}" for one in soak.different[:5]]
    problems += [f"{name} is {value:g}" for name in GAUGES if (value := gauge(url, name))]
    if after["handles"] > before["handles"]:
        problems.append(f"handles: {before['handles']}, then {after['handles']}")
    if after["threads"] > first["threads"] + POOL:
        problems.append(f"threads: {first['threads']}, then {after['threads']}")
    if after["memory"] > before["memory"] + MORE_MEMORY:
        problems.append(f"memory: {before['memory'] >> 20} MiB, then {after['memory'] >> 20} MiB")
    print("\n".join(problems) or "nothing is left, no answer differs")
    return 1 if problems else 0


GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


async def settled(url: str) -> None:
    """Wait until no request runs and idle connections are closed."""
    end = time.monotonic() + 60
    while any(gauge(url, name) for name in GAUGES) and time.monotonic() < end:
        await asyncio.sleep(0.2)
    await asyncio.sleep(6)  # a server closes idle connections after 5 s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    command = [sys.executable, "-m", "pellucid", "serve", asked.model, "--port", "0", "--queue", "150", "--pull"]
    server = subprocess.Popen([*command, "--context", "2048"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if " at http" in line)
        return asyncio.run(run(asked, url, server.pid))
    finally:
        server.terminate()
        _, errors = server.communicate()
        if "Traceback" in errors:
            print(errors[-3000:])


if __name__ == "__main__":
    sys.exit(main())
