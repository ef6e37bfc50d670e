"""Common part of the scripts that drive a peer. A script holds a model, and answers lines of JSON with lines of JSON.

``answer`` serves the requests of peers.py:

    {"prefill": 512}               prefill a prompt of 512 tokens
    {"decode": 128, "depth": 16}   decode 128 tokens after a prompt of 16

The answer is {"tokens_per_second": ...} or {"error": ...}. Each request runs once untimed before its first timed run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Model(Protocol):
    """A model in the peer's engine. Methods return tokens per second."""

    def prefill(self, tokens: int) -> float:
        """Prefill of a prompt."""

    def decode(self, depth: int, tokens: int) -> float:
        """Decode after a prompt; the prefill is not timed."""


T = TypeVar("T")


def serve(load: Callable[[], T], reply: Callable[[T, dict[str, Any]], dict[str, Any]]) -> None:
    """Load a model, answer {}, and answer each line of the input with ``reply(model, request)`` until the input ends.

    An error is answered as {"error": message}.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def say(make: Callable[[], dict[str, Any]]) -> None:
        try:
            said = make()
        except Exception as error:
            said = {"error": " ".join(str(error).split()) or type(error).__name__}
        out.write(json.dumps(said) + "\n")

    model: T

    def start() -> dict[str, Any]:
        nonlocal model
        model = load()
        return {}

    say(start)
    for line in sys.stdin:
        say(lambda line=line: reply(model, json.loads(line)))  # type: ignore[misc]


def answer(load: Callable[[Path, int], Model]) -> None:
    """Serve the model file of the command line with the given number of threads."""
    warm = set()

    def speed(model: Model, wish: dict[str, int]) -> dict[str, Any]:
        if (kind := tuple(wish.items())) not in warm:
            _speed(model, wish)
            warm.add(kind)
        return {"tokens_per_second": _speed(model, wish)}

    serve(lambda: load(Path(sys.argv[1]), int(sys.argv[2])), speed)


def _speed(model: Model, wish: dict[str, int]) -> float:
    return model.prefill(wish["prefill"]) if "prefill" in wish else model.decode(wish["depth"], wish["decode"])
