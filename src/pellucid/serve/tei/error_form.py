"""Errors in text-embeddings-inference's form.

Source: ``ErrorType`` in text-embeddings-inference's router/src/lib.rs.
"""

from __future__ import annotations

from typing import Any

from pellucid.serve.error_details import NO_DETAILS, ErrorDetails


def error_body(status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
    """Error body in text-embeddings-inference's form."""
    kind = (
        "Overloaded" if status in (429, 503) else "Validation" if status < 500 or status == 501 else "Backend"
    )
    return {"error": message, "error_type": kind}
