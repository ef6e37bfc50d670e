"""Renders a conversation to one text with the model's Jinja template.

In: the template's variables, which ``conversation.py`` has checked. Out: the text that the model was trained to
continue. The template is an untrusted program, so it runs in a separate process (``template_process.py``) within
``RenderLimits``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from pellucid.errors import InvalidRequest, TemplateError
from pellucid.tokenize.chat.template_process import ask, encoded

SOURCE_CHARACTERS = 1_000_000
# Maximum size of the source and all variables as JSON, in UTF-8.
REQUEST_BYTES = 40_000_000
MAX_MESSAGE_CHARACTERS = 400


class RenderLimits(Struct, frozen=True):
    """Limits of one rendering: seconds, megabytes of memory (on Linux: of address space), characters of output."""

    seconds: float = 5.0
    megabytes: int = 512
    characters: int = 10_000_000


LIMITS = RenderLimits()


def render(source: str | None, variables: Mapping[str, Any], limits: RenderLimits = LIMITS) -> str:
    """Render the template with the variables.

    Raises:
        TemplateError: the template is missing, cannot be parsed, fails, calls ``raise_exception`` or exceeds a limit,
            or no worker process can be started. The message is one line, with the template's line number if known.
        InvalidRequest: the variables are too long.
    """
    if source is None:
        raise TemplateError("this model has no chat template; give the prompt as one text instead")
    if len(source) > SOURCE_CHARACTERS:
        raise TemplateError(
            f"the chat template has {len(source):,} characters; {SOURCE_CHARACTERS:,} are allowed"
        )
    request = encoded({"source": source, "variables": variables, **asdict(limits)})
    if len(request) > REQUEST_BYTES:
        raise InvalidRequest(
            f"the conversation has {len(request):,} bytes as JSON; {REQUEST_BYTES:,} are allowed: shorten it"
        )
    reply = ask(request, limits.seconds, limits.megabytes)
    if isinstance(text := reply.get("text"), str):
        return text
    line = reply.get("line")
    at = f", line {line:,}" if isinstance(line, int) else ""
    raise TemplateError(f"chat template{at}: {_one_line(str(reply.get('error')))}")


def _one_line(text: str) -> str:
    """A template's error as one line of printable characters, shortened for a message."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split())
    )
    if len(line) > MAX_MESSAGE_CHARACTERS:
        line = line[: MAX_MESSAGE_CHARACTERS - 3] + "..."
    return line or "no reason given"
