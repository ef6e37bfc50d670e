"""Prompt and options for the tests of a loaded random Llama."""

from __future__ import annotations

from typing import Any

CONTEXT = 128
PROMPT = "to see that it rains in the east"
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}
DRAWN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 11, "max_new_tokens": 24}
