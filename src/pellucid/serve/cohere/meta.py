"""The part of Cohere's responses that counts tokens, and Cohere's errors.

Source: https://docs.cohere.com/reference/rerank and https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from typing import Any

from pellucid.serve.error_details import NO_DETAILS, ErrorDetails


def meta(version: int, tokens: int, **units: int) -> dict[str, Any]:
    """The field ``meta``: the version of the API, the tokens of the input, and what Cohere would bill."""
    return {
        "api_version": {"version": str(version)},
        "billed_units": units,
        "tokens": {"input_tokens": tokens},
    }


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in Cohere's form."""
    return {"message": message}
