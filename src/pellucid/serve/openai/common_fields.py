"""Common fields of OpenAI's requests."""

from __future__ import annotations

from typing import Annotated, Any

from pellucid.serve.generation_options import OPENAI_DEFAULTS, generation_options
from pellucid.serve.ignored_fields import LLAMACPP, ignored
from pellucid.serve.request_body import BodyRules, Fields

OPENAI_RULES = BodyRules(
    options=generation_options("watch", "prompt_logprobs"),
    renamed={"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens"},
    defaults=OPENAI_DEFAULTS,
    ignored=frozenset(
        {
            *("user", "store", "metadata", "service_tier", "verbosity"),
            *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
            "prediction",
        }
    )
    | LLAMACPP,
    only={
        "modalities": ["text"],
        "functions": [],
        "function_call": "none",
        **dict.fromkeys(("audio", "moderation", "web_search_options")),
    },
)
"""The rules of chat and text completions."""


class StreamOptions(Fields, frozen=True):
    """The field ``stream_options``. With ``include_usage``, a stream ends with token counts."""

    include_usage: bool = False
    include_obfuscation: Annotated[Any, ignored("stream_options.include_obfuscation")] = None
