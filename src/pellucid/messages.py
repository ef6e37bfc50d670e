"""Words from files, users and other programs, made fit for a message of one line."""

from __future__ import annotations

from typing import Any


def shown(text: str) -> str:
    """Text from a file, made fit for a one-line message: no control characters, at most 80 characters."""
    clean = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return clean if len(clean) <= 80 else clean[:77] + "..."


def brief(value: Any) -> str:
    """Any value as Python writes it, made fit for a one-line message."""
    try:
        return shown(repr(value))
    except Exception:  # an integer of thousands of digits, an object whose repr fails
        return f"a value of type {type(value).__name__}"


def reason(error: Exception) -> str:
    """What went wrong, in one line: the system's words for an `OSError`, else the message's first line."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
