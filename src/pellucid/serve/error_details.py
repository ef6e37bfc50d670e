"""Details of an error that programs read besides its HTTP status: a code, and the name of the wrong field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pellucid.errors import (
    CacheFull,
    ContextOverflow,
    DeadlinePassed,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
)

CODES: Sequence[tuple[type[Exception], str]] = (
    (ContextOverflow, "context_length_exceeded"),
    (ModelNotFound, "model_not_found"),
    (QueueFull, "server_is_overloaded"),
    (CacheFull, "server_is_overloaded"),
    (DeadlinePassed, "request_timeout"),
)
"""OpenAI's code for each error class. The first class that matches applies."""
UNKNOWN = re.compile(r"unknown option '([^']+)'")
MISSING = re.compile(r"([A-Za-z_]\w*(?:\[\w+\]|\.\w+)*) is missing")
FIELD = re.compile(r"([A-Za-z_]\w*(?:\[\w+\]|\.\w+)*)(?:=|:| has | is empty| does not | must )")
"""Beginning of a message about a wrong field."""


@dataclass(frozen=True)
class ErrorDetails:
    """OpenAI's ``code`` for an error, and ``param``, the name of the wrong field."""

    code: str | None = None
    param: str | None = None


NO_DETAILS = ErrorDetails()


class ErrorForm(Protocol):
    """Builds error bodies in an API's form."""

    def __call__(self, status: int, message: str, details: ErrorDetails = NO_DETAILS) -> dict[str, Any]:
        """Error body of a response with this status."""
        ...


def error_details(error: Exception, schema: Mapping[str, Any] | None) -> ErrorDetails:
    """Code and field of an error, for a request whose body has this schema."""
    code = next((code for kind, code in CODES if isinstance(error, kind)), None)
    schema = schema or {"properties": {}, "required": []}
    if isinstance(error, ContextOverflow):
        texts = [name for name in schema["required"] if name != "model"]
        return ErrorDetails(code, texts[0] if texts else None)
    if not isinstance(error, InvalidRequest):
        return ErrorDetails(code)
    message = str(error)
    if match := UNKNOWN.match(message):
        return ErrorDetails("unknown_parameter", match[1])
    for pattern, kind in ((MISSING, "missing_required_parameter"), (FIELD, "invalid_value")):
        if (match := pattern.match(message)) and re.split(r"[.\[]", match[1])[0] in schema["properties"]:
            return ErrorDetails(kind, match[1])
    return ErrorDetails(code)
