"""Common part of the scripts that drive a peer. A script holds a model, and answers the requests of peers.py.

A request is a line of JSON:

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
from typing import Any, Protocol


class Model(Protocol):
    """A model in the peer's engine. Methods return tokens per second."""

    def prefill(self, tokens: int) -> float:
        """Prefill of a prompt."""

    def decode(self, depth: int, tokens: int) -> float:
        """Decode after a prompt; the prefill is not timed."""


def answer(load: Callable[[Path, int], Model]) -> None:
    """Load the model file of the command line with the given number of threads, and answer until the input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def say(make: Callable[[], dict[str, Any]]) -> None:
        try:
            said = make()
        except Exception as error:
            said = {"error": " ".join(str(error).split()) or type(error).__name__}
        out.write(json.dumps(said) + "\n")

    model: Model

    def start() -> dict[str, Any]:
        nonlocal model
        model = load(Path(sys.argv[1]), int(sys.argv[2]))
        return {}

    warm = set()

    def speed(line: str) -> dict[str, Any]:
        wish = json.loads(line)
        if line not in warm:
            _speed(model, wish)
            warm.add(line)
        return {"tokens_per_second": _speed(model, wish)}

    say(start)
    for line in sys.stdin:
        say(lambda line=line: speed(line))  # type: ignore[misc]


def _speed(model: Model, wish: dict[str, int]) -> float:
    return (
        model.prefill(wish["prefill"]) if "prefill" in wish else model.decode(wish["depth"], wish["decode"])
    )
