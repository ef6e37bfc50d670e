"""Recorded runs with absurd shapes, offsets, lists and values: each is read or refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from support.hostile_runs import FACTS

from pellucid.errors import PellucidError
from pellucid.trace import RecordedRun

SECONDS, MEMORY, SMALL, LONG = 5.0, 4 << 30, 300, 100_000
NAMES = ("blocks.0.attention.pattern", "blocks.0.residual", "embed", "sample.top_k", "detokenize.ids", "x")
SIZES = (0, 1, 2, 3, 4, 64, 1 << 16, 1 << 24, 1 << 31, 3037000499, 1 << 53, (1 << 63) - 1, 1 << 63, -1, 0.5, "3", None)
VALUES: tuple[Any, ...] = (*SIZES, [], {}, [[]], [0, 1, "a"], [2, 1, "a"], "a" * 1000, True, {"heads": [1 << 40]})


def case(random: Random, folder: Path) -> str | None:
    """Read a file with a few small arrays and some replaced facts."""
    facts = dict(FACTS)
    for _ in range(random.randrange(4)):
        name = random.choice([*FACTS, "parts", "shape", "answers", "notes", "characters", "question"])
        facts[name] = random.choice([random.choice(VALUES), [random.choice(VALUES)] * random.randrange(5)])
    header: dict[str, Any] = {"__metadata__": {"pellucid.run": json.dumps(facts)}}
    offset = 0
    for name in random.sample(NAMES, random.randrange(4)):
        shape = [random.choice(SIZES[: random.choice((5, len(SIZES)))]) for _ in range(random.randrange(6))]
        count = 1
        for size in shape:
            count *= size if type(size) is int else 1
        nbytes = 4 * count if 0 <= count < 1 << 12 else random.randrange(64)
        header[name] = {
            "dtype": random.choice(("F32", "I32", "F16")),
            "shape": shape,
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    head = json.dumps(header).encode()
    path = folder / "one.run"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(offset))
    try:
        run = RecordedRun.open(path)
        [run[name] for name in run]
        repr(run)
    except PellucidError as error:
        if len(str(error).splitlines()) != 1:
            return f"an error of several lines: {error!r}"
    return None
