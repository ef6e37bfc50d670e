"""The load of several clients on a server with OpenAI's API: throughput, time to the first token, gaps.

    python bench/serving.py URL --model NAME [--clients 16] [--requests 64] [--prompt 256] [--shared 128] [--tokens 128]
                            [--body '{"prompt_lookup": false}']

Each client sends one request after the other, as a stream. A prompt has so many words, of which the first are the same
in all. Works on any such server, so that peers are measured alike: llama-server, vLLM, pellucid serve. The last line is
JSON; seconds are those that a client sees.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from typing import Any

import httpx

WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child"),
    *("world", "school", "state", "family", "student", "group", "country"),
)


def prompt(number: int, words: int, shared: int) -> str:
    """A text of about one token for each word."""
    same, own = random.Random(0), random.Random(number + 1)
    return " ".join(
        [*(same.choice(WORDS) for _ in range(shared)), *(own.choice(WORDS) for _ in range(words - shared))]
    )


async def request(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request, and take the time of each event that has text."""
    start, times, tokens = time.perf_counter(), list[float](), 0
    async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if usage := event.get("usage"):
                tokens = usage["completion_tokens"]
            if event.get("choices") and event["choices"][0].get("text"):
                times.append(time.perf_counter())
    return {
        "first": times[0] - start,
        "gaps": [b - a for a, b in itertools.pairwise(times)],
        "tokens": tokens,
    }


async def load(asked: argparse.Namespace) -> dict[str, Any]:
    """All clients at once."""
    left, found = list(range(asked.requests)), list[dict[str, Any]]()

    async def client(http: httpx.AsyncClient) -> None:
        while left:
            number = left.pop(0)
            body = {
                "model": asked.model,
                "prompt": prompt(number, asked.prompt, asked.shared),
                "max_tokens": asked.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **asked.body,
            }
            found.append(await request(http, asked.url, body))

    limits = httpx.Limits(max_connections=asked.clients)
    async with httpx.AsyncClient(timeout=None, limits=limits) as http:
        start = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(asked.clients)))
        seconds = time.perf_counter() - start
    firsts, gaps = sorted(one["first"] for one in found), sorted(gap for one in found for gap in one["gaps"])
    tokens = sum(one["tokens"] or len(one["gaps"]) + 1 for one in found)
    return {
        "clients": asked.clients,
        "requests": asked.requests,
        "tokens_per_second": round(tokens / seconds, 1),
        "first_token_median": round(statistics.median(firsts), 3),
        "first_token_p95": round(firsts[int(0.95 * (len(firsts) - 1))], 3),
        "gap_median": round(statistics.median(gaps), 4),
        "gap_p99": round(gaps[int(0.99 * (len(gaps) - 1))], 4),
        "longest_gap": round(gaps[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    for name, usual in (("clients", 16), ("requests", 64), ("prompt", 256), ("shared", 128), ("tokens", 128)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--body", type=json.loads, default={}, help="more fields of each request, as JSON")
    asked = parser.parse_args()
    warm = argparse.Namespace(**{**vars(asked), "clients": 2, "requests": 2, "tokens": 8})
    asyncio.run(load(warm))
    print(json.dumps(asyncio.run(load(asked))))


if __name__ == "__main__":
    main()
