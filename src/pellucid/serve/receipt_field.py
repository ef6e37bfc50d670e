"""The field ``receipt`` in the answers of every API."""

from __future__ import annotations

from typing import Any

from pellucid.engine.output import Generation


def receipt_field(generation: Generation | None) -> dict[str, Any]:
    """The field ``receipt`` of an answer; empty if the generation has no receipt."""
    receipt = None if generation is None else generation.receipt
    return {} if receipt is None else {"receipt": receipt.as_dict()}
