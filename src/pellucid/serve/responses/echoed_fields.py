"""Request fields that a response repeats, with their defaults.

Source: https://github.com/openresponses/openresponses, ``ResponseResource``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pellucid.sample.step import owners

REPEATED: Mapping[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
}
FORMAT: Mapping[str, Any] = {"type": "text"}
SCHEMA_FORMAT: Mapping[str, Any] = {"name": "response", "description": None, "strict": True}
TOOL: Mapping[str, Any] = {"description": None, "parameters": None, "strict": True}
SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
"""Options whose values a response reports. A value comes from the request, the model file or the defaults."""


def echoed_fields(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Response fields for a request with the fields ``given`` that ran with these ``options``."""
    repeated = {name: usual if given.get(name) is None else given[name] for name, usual in REPEATED.items()}
    text, reasoning = given.get("text") or {}, given.get("reasoning") or {}
    form = text.get("format") or FORMAT
    if form["type"] == "json_schema":
        form = {**SCHEMA_FORMAT, **form}
    return {
        **repeated,
        "service_tier": "default",
        "text": {**text, "format": form},
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "tools": [{**TOOL, **one} for one in given.get("tools") or []],
        **{name: float(options.get(name, _usual(name))) for name in SAMPLING},
    }


def _usual(name: str) -> Any:
    """Default of a sampler option."""
    return next(one.default for one in fields(owners()[name]) if one.name == name)
