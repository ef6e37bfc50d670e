"""A viewer of a running request: opens its trace at the server, and reads the events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from support.served import Served


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def expected(served: Served, number: str) -> None:
    """Wait until a viewer waits for the request."""
    wait_until(lambda: number in served.awaited)


def events_of(url: str, number: str, headers: dict[str, str] | None = None, **query: Any) -> list[tuple[str, Any]]:
    """Read all events of a request's trace."""
    found, kind = list[tuple[str, Any]](), ""
    asked = httpx.stream(
        "GET", f"{url}/v1/requests/{number}/trace", params={"wait": 20, **query}, headers=headers, timeout=60
    )
    with asked as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                found.append((kind, json.loads(value)))
    return found


def watched(served: Served, number: str, body: dict[str, Any], **query: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Open the trace of a request, then send the request. Returns the events and the answer."""
    events: list[tuple[str, Any]] = []
    viewer = threading.Thread(target=lambda: events.extend(events_of(served.url, number, **query)))
    viewer.start()
    expected(served, number)
    answer = httpx.post(f"{served.url}/v1/completions", json=body, headers={"X-Request-Id": number}, timeout=60)
    viewer.join(60)
    return events, answer
