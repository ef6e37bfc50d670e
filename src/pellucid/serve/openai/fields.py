"""Common fields of OpenAI's requests."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import PLAIN, Body, BodyForm
from pellucid.serve.harmless import LLAMACPP

OPENAI_BODY = BodyForm(
    harmless=frozenset(
        {
            *("user", "store", "metadata", "service_tier", "verbosity"),
            *("prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
        }
    )
    | LLAMACPP,
    only={"modalities": ["text"], "functions": [], "function_call": "none"},
    renamed={"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens"},
    defaults=PLAIN,
)
"""The form of chat and text completions."""
PLAIN_BODY = BodyForm(harmless=frozenset({"user"}))
"""The form of requests that generate nothing."""


def stream_usage(body: Body) -> bool:
    """True if a stream ends with its usage."""
    options = body.take("stream_options", {})
    if not isinstance(options, Mapping) or not isinstance(options.get("include_usage", False), bool):
        raise InvalidRequest(f"stream_options={brief(options)}: must be an object with include_usage")
    return bool(options.get("include_usage", False))
