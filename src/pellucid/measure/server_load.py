"""Load test of a server with OpenAI's API, measured by its clients.

The test runs on any server with this API (llama-server, vLLM, pellucid serve), and measures all servers in the same
way. In a closed loop, a number of clients send one request after the other. In an open loop, requests arrive at random
times with a given rate (a Poisson process). A prompt has about one token for each word. The first words of a prompt are
the same in all requests.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from pellucid.errors import InvalidRequest, brief, shown
from pellucid.util.checks import real, secret_value, whole

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child"),
    *("world", "school", "state", "family", "student", "group", "country"),
)
MAX_LENGTH, MAX_REQUESTS = 1 << 20, 1 << 20  # words or tokens; requests
MAX_CLIENTS = 10_000
LENGTH = re.compile(r"(\d+)(?:([-~])(\d+))?")
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Lengths:
    """Lengths from ``low`` to ``high``, or, if ``normal``, around ``low`` with a standard deviation of ``high``."""

    low: int
    high: int
    normal: bool = False

    @classmethod
    def of(cls, name: str, text: str) -> Lengths:
        """Read "128", "64-256" or "128~32". Raises InvalidRequest if the text has another form."""
        match = LENGTH.fullmatch(str(text))
        if not match:
            raise InvalidRequest(
                f"{name}={brief(text)}: must be a length (128), a range (64-256), or a mean and a deviation (128~32)"
            )
        low, high = int(match[1][:12]), int((match[3] or match[1])[:12])
        normal = match[2] == "~"
        whole(name, low, 1, MAX_LENGTH)
        whole(name, high, 0 if normal else low, MAX_LENGTH)
        return cls(low, high, normal)

    @property
    def mean_length(self) -> int:
        return self.low if self.normal else (self.low + self.high) // 2

    @property
    def longest(self) -> int:
        """The maximum length; of a normal distribution, the length that 1 in 30,000 lengths exceeds."""
        return self.low + 4 * self.high if self.normal else self.high

    def draw(self, rng: random.Random) -> int:
        if self.normal:
            return max(1, round(rng.gauss(self.low, self.high)))
        return rng.randint(self.low, self.high)


@dataclass(frozen=True)
class ServerLoad:
    """The requests of a load test: ``requests`` requests to ``model`` at ``url``, with ``api`` "completions" or "chat".

    ``prompt`` are the lengths of prompts in words, and ``tokens`` the numbers of generated tokens. All prompts begin
    with the same ``shared`` words. ``body`` has further fields of each request. The same ``seed`` gives the same
    requests.
    """

    url: str
    model: str
    api: str = "completions"
    key: str | None = None
    requests: int = 64
    prompt: Lengths = Lengths(256, 256)
    shared: int = 128
    tokens: Lengths = Lengths(128, 128)
    seed: int = 0
    body: Mapping[str, Any] = field(default_factory=dict)

    def bodies(self) -> Iterator[dict[str, Any]]:
        of_all = random.Random(self.seed)
        shared = [of_all.choice(WORDS) for _ in range(self.shared)]
        for number in range(self.requests):
            rng = random.Random(f"{self.seed} {number}")
            words = max(self.prompt.draw(rng), 1)
            text = " ".join([*shared[:words], *(rng.choice(WORDS) for _ in range(words - self.shared))])
            content = (
                {"prompt": text} if self.api == "completions" else {"messages": [{"role": "user", "content": text}]}
            )
            yield {
                "model": self.model,
                **content,
                "max_tokens": self.tokens.draw(rng),
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.body,
            }


@dataclass
class Sample:
    """The result of a request: the time ``sent`` of the request, the ``times`` of the events with text, the numbers of
    tokens, and the ``error`` of a request that failed.
    """

    sent: float
    times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    error: str = ""

    @property
    def first(self) -> float:
        return self.times[0] - self.sent

    @property
    def per_token(self) -> float:
        return (self.times[-1] - self.times[0]) / max(self.tokens - 1, 1)


def arrivals(seed: int, rate: float) -> Iterator[float]:
    """Yield random arrival times of requests in seconds, with ``rate`` requests per second: a Poisson process."""
    rng, now = random.Random(seed), 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def measure_server(
    load: ServerLoad,
    *,
    clients: int | None = None,
    rate: float | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Send the requests from ``clients`` clients, which await each response, or at a ``rate`` in requests per second.

    Returns the figures: tokens and requests per second, and percentiles of latencies in seconds. ``progress`` is called
    with the number of finished requests and the number of all requests. Raises InvalidRequest if a number is out of
    range, or the server cannot be reached.
    """
    whole("requests", load.requests, 1, MAX_REQUESTS)
    if clients is not None:
        whole("clients", clients, 1, MAX_CLIENTS)
    if rate is not None:
        real("rate", rate, 0.0, 1e6, above=True)
    return asyncio.run(_measure(load, clients, rate, progress))


async def _measure(
    load: ServerLoad, clients: int | None, rate: float | None, progress: Callable[[int, int], object]
) -> dict[str, Any]:
    samples, bodies = list[Sample](), load.bodies()
    # Ask for uncompressed responses, because the raw parts of a response are parsed.
    headers = {b"Accept-Encoding": b"identity", **key_headers(load.key)}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=None, limits=limits, headers=headers) as http:
        start = time.perf_counter()

        async def send(body: Mapping[str, Any]) -> None:
            samples.append(await _request(http, load, body))
            progress(len(samples), load.requests)

        async def client() -> None:
            for body in bodies:
                await send(body)

        if rate is None:
            await asyncio.gather(*(client() for _ in range(clients or 1)))
        else:
            tasks = []
            for body, due in zip(bodies, arrivals(load.seed, rate)):
                await asyncio.sleep(max(start + due - time.perf_counter(), 0.0))
                tasks.append(asyncio.create_task(send(body)))
            await asyncio.gather(*tasks)
        seconds = time.perf_counter() - start
    level = {"clients": clients or 1} if rate is None else {"rate": rate}
    return {**level, **figures(samples, seconds)}


async def _request(http: httpx.AsyncClient, load: ServerLoad, body: Mapping[str, Any]) -> Sample:
    sample = Sample(time.perf_counter())
    path = "completions" if load.api == "completions" else "chat/completions"
    try:
        async with http.stream("POST", f"{load.url}/v1/{path}", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode("utf-8", "replace")
                sample.error = f"status {response.status_code}: {shown(text)}"
                return sample
            parts = [(time.perf_counter(), part) async for part in response.aiter_raw()]
        _read(sample, parts)
    except (httpx.HTTPError, ValueError) as error:
        sample.error = f"{type(error).__name__}: {shown(str(error))}"
    sample.tokens = sample.tokens or len(sample.times)
    if not sample.error and not sample.times:
        sample.error = "an answer without text"
    return sample


def _read(sample: Sample, parts: Sequence[tuple[float, bytes]]) -> None:
    """Read the events of a stream from its parts: (arrival time, bytes).

    The parts are parsed after the end of the stream, because parsing would take CPU time from the measured server.
    """
    unfinished = b""
    for at, part in parts:
        *lines, unfinished = (unfinished + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                _take(sample, json.loads(line[6:]), at)


def _take(sample: Sample, event: Mapping[str, Any], at: float) -> None:
    if event.get("error"):
        sample.error = shown(str(event["error"]))
    if usage := event.get("usage"):
        sample.tokens, sample.prompt_tokens = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
        sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            sample.times.append(at)


def figures(samples: Sequence[Sample], seconds: float) -> dict[str, Any]:
    answered = [sample for sample in samples if not sample.error]
    gaps = [after - before for sample in answered for before, after in itertools.pairwise(sample.times)]
    errors = sorted({sample.error for sample in samples if sample.error})
    return {
        "requests": len(samples),
        "failed": len(samples) - len(answered),
        "errors": errors[:3],
        "seconds": seconds,
        "requests_per_second": len(answered) / seconds,
        "tokens_per_second": sum(sample.tokens for sample in answered) / seconds,
        "prompt_tokens": statistics.mean([sample.prompt_tokens for sample in answered]) if answered else 0,
        "cached_tokens": statistics.mean([sample.cached_tokens for sample in answered]) if answered else 0,
        "first_token": percentiles([sample.first for sample in answered]),
        "per_token": percentiles([sample.per_token for sample in answered if sample.tokens > 1]),
        "gap": {**percentiles(gaps), "longest": max(gaps, default=0.0)},
        "whole": percentiles([sample.times[-1] - sample.sent for sample in answered]),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The percentiles of times in seconds, by the nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {f"p{percent}": 0.0 for percent in PERCENTILES}
    return {f"p{percent}": ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for percent in PERCENTILES}


def key_headers(key: str | None) -> dict[bytes, bytes]:
    """Headers of a request with an API key. Raises InvalidRequest for a key that no header can carry."""
    if not key:
        return {}
    return {b"Authorization": b"Bearer " + secret_value("the key", key).encode(errors="surrogateescape")}


def models_of(url: str, key: str | None) -> list[str]:
    """The models of a server. Raises InvalidRequest if ``url`` has no server with OpenAI's API."""
    headers = key_headers(key)
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers, timeout=10)
        response.raise_for_status()
        return [model["id"] for model in response.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {shown(str(error))}"
        raise InvalidRequest(f"{shown(url)} has no server with OpenAI's API ({problem}): start one there") from error
