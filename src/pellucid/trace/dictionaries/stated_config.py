"""The configuration beside the arrays of a sparse coder. A field that contradicts the arrays is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import FileFormatError
from pellucid.errors.messages import brief


class StatedConfig(Struct, frozen=True):
    """The fields of a configuration, and its file. Sizes may be texts of digits, because YAML is read as texts.

    Every method raises FileFormatError, which names the field, its value, what it must be, and the remedy.
    """

    path: Path
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> FileFormatError:
        """The error about a field."""
        return FileFormatError(self.path, field, f"{brief(self.fields.get(field))}{problem}")

    def text(self, field: str) -> str | None:
        """A text; None if it is missing or null."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self.error(field, ": must be a text")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        """A truth value; ``default`` if it is missing."""
        value = self.fields.get(field, default)
        if not isinstance(value, bool):
            raise self.error(field, ": must be true or false")
        return value

    def k(self, features: int) -> int:
        """The k of a top-k coder."""
        k = self.fields.get("k")
        if isinstance(k, float) and k.is_integer():
            k = int(k)
        if type(k) is not int or not 1 <= k <= features:
            raise self.error("k", f": must be a whole number from 1 to the {features:,} features")
        return k

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Check that each field in ``sizes``, if it is not missing or null, has the size of the arrays."""
        for field, size in sizes.items():
            value = self.fields.get(field)
            if value is None or (value == size and not isinstance(value, bool)) or value == str(size):
                continue
            raise self.error(
                field,
                f" contradicts the arrays, which have {size:,}: correct it, or use the arrays of this file",
            )

    def check_is(self, field: str, found: str, *, known: tuple[str, ...]) -> None:
        """Check that a text, if it is not missing or null, is ``found``, which the arrays show."""
        value = self.text(field)
        if value is not None and value not in known:
            raise self.error(field, f" is not read; known are {', '.join(known)}")
        if value not in (None, found):
            raise self.error(
                field, f" contradicts the arrays, which are {found!r}: correct it, or use the other files"
            )
