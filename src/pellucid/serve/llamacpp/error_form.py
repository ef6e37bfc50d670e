"""Errors in llama.cpp's form: its types, and the HTTP status as the code.

Source: ``format_error_response`` in llama.cpp's tools/server/server-common.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.serve.error_details import NO_DETAILS, ErrorDetails

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""llama.cpp's error type for an HTTP status. Other types: "invalid_request_error" below 500, else "server_error"."""


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in llama.cpp's form."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    if details.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": status, "message": message, "type": kind, "param": details.param}}
