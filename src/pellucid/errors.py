"""Every error that Pellucid raises on purpose.

    PellucidError                     base of all; the command line prints it in one line and exits with 2
    ├── InvalidRequest (ValueError)   a parameter or prompt is out of range: names value, limit, remedy
    │   ├── BodyTooLong               the body of an HTTP request is above the limit
    │   ├── ContextOverflow           the prompt is longer than the model's context
    │   ├── NothingLeft               the steps of the chain forbid every token: names the last step
    │   └── UnsupportedTask           the model cannot do this: names what it lacks, and a model that can
    ├── NotFound (LookupError)        the name is unknown, or belongs to another caller
    │   └── ModelNotFound             no model has that name: suggests the nearest name
    ├── SourceError (OSError)         a model could not be downloaded: lists each source and why it failed
    │   └── DownloadInterrupted       a download broke off: the next pull continues it
    ├── FileFormatError (ValueError)  a model file is damaged or inconsistent: names path, field and offset
    ├── UnsupportedModel              a valid file needs a feature that is not implemented: lists what is implemented
    ├── TemplateError (ValueError)    the chat template failed: names its line
    ├── CacheFull (MemoryError)       too few free key/value pages: names the needed and the free number of pages
    ├── QueueFull                     the queue is full: names its limit
    ├── DeadlinePassed (TimeoutError) a request did not end before its deadline
    └── KernelError (RuntimeError)    a kernel did not compile or reported a failure: a bug in Pellucid

Errors also derive from the built-in exception that a Python programmer expects, so ``except ValueError`` works. The
functions at the end shorten quoted text for one-line messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class PellucidError(Exception):
    """Base of every error that Pellucid raises on purpose.

    A message is one line of at most 600 characters. Each quoted name or value is shortened separately
    (``brief``), so that the rest of the message stays intact.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(bounded(str(message)))


class InvalidRequest(PellucidError, ValueError):
    """A parameter or a prompt is out of range. The message names the value, the limit and the remedy."""


class BodyTooLong(InvalidRequest):
    """The body of an HTTP request is longer than the limit."""


class ContextOverflow(InvalidRequest):
    """The prompt does not fit into the context."""


class NothingLeft(InvalidRequest):
    """The steps of a chain forbid every token. The message names the step that forbade the last token."""


class UnsupportedTask(InvalidRequest):
    """The model cannot do what was asked. The message names what it lacks, and a model that can."""


class NotFound(PellucidError, LookupError):
    """The name is unknown, or belongs to another caller. The message does not distinguish the two cases."""


class ModelNotFound(NotFound):
    """No model has that name. The message suggests the nearest name."""


class SourceError(PellucidError, OSError):
    """A model could not be downloaded. The message lists each source that was tried and why it failed."""


class DownloadInterrupted(SourceError):
    """A download broke off, or its server could not be reached. The next pull continues the download."""


class FileFormatError(PellucidError, ValueError):
    """A file is damaged, truncated or contradicts itself.

    Attributes: ``path`` of the file; the wrong ``field``; the ``offset`` of the field in bytes, or None.
    """

    def __init__(self, path: str | Path, field: str, problem: str, offset: int | None = None) -> None:
        self.path, self.field, self.offset, self._problem = Path(path), field, offset, problem
        where = "" if offset is None else f" at byte {offset:,}"
        super().__init__(f"{shown(self.path.name or str(self.path))}: {shown(field)}{where}: {problem}")

    def __reduce__(self) -> tuple[type[FileFormatError], tuple[Path, str, str, int | None]]:
        return type(self), (self.path, self.field, self._problem, self.offset)


class UnsupportedModel(PellucidError):
    """A valid file needs a feature that is not implemented. The message lists the implemented features."""


class TemplateError(PellucidError, ValueError):
    """The chat template could not be parsed or rendered."""


class CacheFull(PellucidError, MemoryError):
    """No key/value pages are left for this request."""


class QueueFull(PellucidError):
    """The queue of waiting requests is full. Retry later."""


class DeadlinePassed(PellucidError, TimeoutError):
    """A request did not end before its deadline, which includes its time in the queue."""


class KernelError(PellucidError, RuntimeError):
    """A kernel did not compile or reported a failure. This is a bug in Pellucid."""


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
