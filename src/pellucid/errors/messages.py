"""Shortens text from files, users and other programs for one-line messages."""

from __future__ import annotations

from typing import Any

# A message has at most LONGEST characters. Of a very long text, only MAX_READ characters are processed for a message.
LONGEST, MAX_READ = 600, 20_000


def shown(text: str) -> str:
    """Text shortened for a one-line message: no control characters, at most 80 characters."""
    clean = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return clean if len(clean) <= 80 else clean[:77] + "..."


def brief(value: Any) -> str:
    """The repr of any value, shortened for a one-line message."""
    try:
        return shown(repr(value))
    except Exception:  # repr fails, for example for an integer of thousands of digits
        return f"a value of type {type(value).__name__}"


def one_line(text: str) -> str:
    """Text from any source as one line that is safe to print on a terminal."""
    line = " ".join(part for one in text.splitlines() if (part := one.strip()))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def bounded(text: str) -> str:
    """A message as one line of at most 600 characters. A longer message keeps its beginning and its end."""
    line = one_line(text[: MAX_READ // 2] + text[-MAX_READ // 2 :] if len(text) > MAX_READ else text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 203]}...{line[-200:]}"


def reason(error: Exception) -> str:
    """Cause of an error in one line: the system's text for an `OSError`, else the first line of the message."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
