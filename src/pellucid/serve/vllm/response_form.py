"""The form of vLLM's responses about encoders."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any


def listed(
    prefix: str, number: str, name: str, data: Sequence[dict[str, Any]], tokens: int
) -> dict[str, Any]:
    """A response with an entry for each input. ``tokens`` is the number of tokens of the inputs."""
    return {
        "id": f"{prefix}-{number}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": at, **one} for at, one in enumerate(data)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
