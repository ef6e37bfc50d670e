"""Every error that Pellucid raises on purpose.

    PellucidError                     anything below; the command line prints it in one line and exits with 2
    ├── InvalidRequest (ValueError)   a parameter or prompt is out of range: names value, limit, remedy
    │   ├── ContextOverflow           prompt longer than the model's context
    │   └── NothingLeft               the steps of the chain forbid every token: says which was the last
    ├── ModelNotFound (LookupError)   no model of that name: suggests the nearest
    ├── SourceError (OSError)         a model could not be fetched: lists each source tried and why
    ├── FileFormatError (ValueError)  a model file is damaged or lies: names path, field and offset
    ├── UnsupportedModel              a well-formed file asks for what is not implemented: lists what is
    ├── TemplateError (ValueError)    the chat template failed: names its line
    ├── CacheFull (MemoryError)       no key/value pages left: says how many were asked for and how many exist
    └── KernelError (RuntimeError)    a kernel did not compile or reported failure: a bug of ours

Errors double as the built-in that a Python programmer would expect, so ``except ValueError`` works.
"""

from __future__ import annotations

from pathlib import Path

from pellucid.errors.messages import bounded, shown


class PellucidError(Exception):
    """Base of every error that Pellucid raises on purpose.

    A message is one line of at most 600 characters, whatever it quotes: names and values come from files and requests.
    Where a message quotes such a value, it is shortened by itself (``messages.brief``), so that the rest stays.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(bounded(str(message)))


class InvalidRequest(PellucidError, ValueError):
    """A parameter or a prompt is out of range. The message names the value, the limit and the remedy."""


class ContextOverflow(InvalidRequest):
    """The prompt does not fit into the context."""


class NothingLeft(InvalidRequest):
    """The steps of a chain forbid every token. The message names the one that forbade the last."""


class ModelNotFound(PellucidError, LookupError):
    """No model goes by that name. The message suggests the nearest."""


class SourceError(PellucidError, OSError):
    """A model could not be fetched. The message lists each source that was tried and why it failed."""


class FileFormatError(PellucidError, ValueError):
    """A file is damaged, truncated or contradicts itself.

    Attributes: ``path`` of the file, ``field`` that is wrong, ``offset`` in bytes of that field, or None.
    """

    def __init__(self, path: str | Path, field: str, problem: str, offset: int | None = None) -> None:
        self.path, self.field, self.offset, self._problem = Path(path), field, offset, problem
        where = "" if offset is None else f" at byte {offset:,}"
        super().__init__(f"{shown(self.path.name or str(self.path))}: {shown(field)}{where}: {problem}")

    def __reduce__(self) -> tuple[type[FileFormatError], tuple[Path, str, str, int | None]]:
        return type(self), (self.path, self.field, self._problem, self.offset)


class UnsupportedModel(PellucidError):
    """A well-formed file asks for something that is not implemented. The message lists what is."""


class TemplateError(PellucidError, ValueError):
    """The chat template could not be parsed or rendered."""


class CacheFull(PellucidError, MemoryError):
    """No key/value pages are left for this request."""


class KernelError(PellucidError, RuntimeError):
    """A kernel did not compile or reported a failure. This is a bug in Pellucid."""
