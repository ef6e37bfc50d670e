"""Numbers that users give, checked: of which type, in which range. NumPy's are as good as Python's."""

from __future__ import annotations

import numbers
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.messages import brief


def whole(name: str, value: Any, low: int, high: int, hint: str = "") -> int:
    """``value`` as an int from ``low`` to ``high``.

    Raises:
        InvalidRequest: it is none; names the parameter, the value and the range, then ``hint``.
    """
    fine = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not fine or not low <= value <= high:
        raise InvalidRequest(
            f"{name}={brief(value)}: must be a whole number from {low:,} to {high:,}{_then(hint)}"
        )
    return int(value)


def real(name: str, value: Any, low: float, high: float, hint: str = "", *, above: bool = False) -> float:
    """``value`` as a float from ``low`` (if ``above``: from anything greater) to ``high``. Raises likewise."""
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not fine or not (low < value if above else low <= value) or not value <= high:
        between = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise InvalidRequest(f"{name}={brief(value)}: must be a number {between}{_then(hint)}")
    return float(value)


def _then(hint: str) -> str:
    return f"; {hint}" if hint else ""
