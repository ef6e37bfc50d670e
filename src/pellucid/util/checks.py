"""Checks of user values by type and range. NumPy numbers are accepted like Python numbers."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from pellucid.errors import InvalidRequest, brief

HEADER = re.compile(r"[\t\x20-\x7e\x80-\xff\udc80-\udcff]*")
"""Texts that an HTTP header can carry (RFC 9110, section 5.5). Surrogates stand for bytes that are not UTF-8."""


def is_whole(value: Any) -> bool:
    """True if a value is an integer. Booleans are not integers here."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole(name: str, value: Any, low: int, high: int, hint: str = "") -> int:
    """``value`` as an int from ``low`` to ``high``.

    Raises InvalidRequest: ``value`` is not an integer in this range. The message has ``name``, the value, the range and
    ``hint``.
    """
    if not is_whole(value) or not low <= value <= high:
        raise InvalidRequest(f"{name}={brief(value)}: must be a whole number from {low:,} to {high:,}{_suffix(hint)}")
    return int(value)


def real(name: str, value: Any, low: float, high: float, hint: str = "", *, above: bool = False) -> float:
    """``value`` as a float from ``low`` to ``high``. With ``above`` it must be above ``low``. Raises like `whole`."""
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fine or not (low < value if above else low <= value) or not value <= high:
        between = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{name}={brief(value)}: must be a number {between}{_suffix(hint)}")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """``value`` as a bool. NumPy's booleans are accepted. Raises like `whole`."""
    if isinstance(value, bool):
        return value
    import numpy as np  # slow to import, and only other values need it

    if not isinstance(value, np.bool_):
        raise InvalidRequest(f"{name}={brief(value)}: must be True or False")
    return bool(value)


def index(name: str, value: Any, count: int) -> int:
    """``value`` as an index of ``count`` items. A negative number counts from the end. Raises like `whole`."""
    return whole(name, value, -count, count - 1) % count


def one_of(name: str, value: Any, options: Sequence[str]) -> str:
    """``value``, which is one of ``options``. Raises like `whole`."""
    if not isinstance(value, str) or value not in options:
        raise InvalidRequest(f"{name}={brief(value)}: must be {', '.join(options[:-1])} or {options[-1]}")
    return value


def token_id(name: str, value: Any, vocabulary: int) -> int:
    """``value`` as a token id below ``vocabulary``. Raises like `whole`."""
    return whole(f"{name} holds a token id", value, 0, vocabulary - 1)


def text(name: str, value: Any, longest: int | None = None) -> str:
    """``value`` as valid Unicode text of 1 to ``longest`` characters. Raises like `whole`."""
    if not isinstance(value, str) or not value or not len(value) <= (longest or len(value)):
        most = "at least 1 character" if longest is None else f"1 to {longest:,} characters"
        raise InvalidRequest(f"{name}={brief(value)}: must be a text of {most}")
    return characters(name, value)


def string(name: str, value: Any) -> str:
    """``value`` as a text, which may be empty. Raises like `whole`."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}={brief(value)}: must be a text")
    return value


def items(name: str, values: Any, of: str = "texts") -> Iterator[Any]:
    """The items of a list, a tuple, a generator or an array. Raises like `whole`, before the first item is read.

    A text is not a list of its letters, bytes are no list of numbers, and sets and mappings have no order or values.
    """
    try:
        if isinstance(values, (str, bytes, bytearray, Set, Mapping)):
            raise TypeError
        return iter(values)
    except TypeError:
        own = brief(values)
        hint = f": give [{own}]" if isinstance(values, str) and of == "texts" else ""
        raise InvalidRequest(f"{name}={own}: must be a list of {of}{hint}") from None


def strings(name: str, values: Any) -> list[str]:
    """``values`` as a list of texts. Raises like `items`."""
    found = list(items(name, values))
    if not set(map(type, found)) <= {str}:
        for at, value in enumerate(found):
            string(f"{name}[{at}]", value)
    return found


def one_or_more(name: str, values: Any, of: str = "texts") -> list[Any]:
    """The items of a list; a text is a list of one. Raises like `items`, and if the list is empty."""
    found = [values] if isinstance(values, str) else list(items(name, values, of))
    if not found:
        raise InvalidRequest(f"{name}=[]: must be a text, or a list of {of} that is not empty")
    return found


def characters(name: str, value: str) -> str:
    """``value``, if it has no surrogates. A surrogate is half of a UTF-16 character, or stands for an undecodable byte.

    A tokenizer would replace each surrogate by another character. Raises like `whole`.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(value[error.start]):04X}"
        raise InvalidRequest(
            f"{name} has the surrogate {code} at character {error.start:,}: give valid Unicode, "
            "on a command line as UTF-8"
        ) from None
    return value


def secret_value(name: str, value: str) -> str:
    """``value``, which an HTTP header can carry.

    Raises InvalidRequest: it cannot. The message does not show the value, because logs keep messages.
    """
    if not HEADER.fullmatch(value):
        raise InvalidRequest(
            f"{name} has a character that no HTTP header can carry (a line end, a control character, or a letter "
            "outside Latin-1): give another key"
        )
    return value


def _suffix(hint: str) -> str:
    return f"; {hint}" if hint else ""
