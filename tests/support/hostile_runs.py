"""Recorded runs with absurd sizes: the files are small, but a reader that trusts them never finishes."""

from __future__ import annotations

import json
from typing import Any

FACTS: dict[str, Any] = {
    "version": 1,
    "model": {"name": "model", "family": "llama", "vocabulary": 10},
    "prompt": [1, 2],
    "ids": [3],
    "pieces": ["a", "b", "c"],
    "text": "c",
    "finish_reason": "stop",
    "seed": None,
    "options": {},
    "chain": [],
    "edits": [],
}
PATTERN = "blocks.0.attention.pattern"


def run_bytes(arrays: dict[str, tuple[str, list[int]]], overlap: bool = False, **facts: Any) -> bytes:
    """Bytes of a recorded run with arrays of zeros, (dtype, shape) by name. With ``overlap`` all arrays share bytes."""
    header: dict[str, Any] = {"__metadata__": {"pellucid.run": json.dumps({**FACTS, **facts})}}
    offset = end = 0
    for name, (dtype, shape) in arrays.items():
        count = 1
        for size in shape:
            count *= size
        end = max(end, offset + 4 * count)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + 4 * count]}
        offset = 0 if overlap else end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + bytes(end)


SHAPES: dict[str, tuple[str, list[int]]] = {
    "two roots of 2^63 and a zero": (PATTERN, [3037000499, 3037000499, 0]),
    "a zero first": (PATTERN, [0, 1 << 62, 1 << 62]),
    "many heads without tokens": (PATTERN, [1 << 40, 0, 0]),
    "many empty rows": ("blocks.0.residual", [1 << 40, 0]),
    "wide rows without tokens": ("blocks.0.residual", [0, 1 << 40]),
    "more rows than tokens": ("blocks.0.residual", [4, 2]),
    "more keys than tokens": (PATTERN, [1, 3, 4]),
    "five sizes": ("blocks.0.residual", [1, 1, 1, 1, 1]),
    "no size": ("blocks.0.residual", []),
    "values of a source that the run does not have": ("encoder.embed", [1, 2]),
    "keys of a source that the run does not have": ("blocks.0.cross.k", [1, 2]),
    "weights for a source that the run does not have": ("blocks.0.cross.pattern", [1, 3, 1]),
}
"""Names and shapes of arrays that are invalid in a run of three tokens."""
