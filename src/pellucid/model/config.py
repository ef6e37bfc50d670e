"""The metadata of a file. The type and range of every value are checked, and errors name the wrong value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from pellucid.errors import FileFormatError, UnsupportedModel, brief

T = TypeVar("T")
_MISSING: Any = object()
MAX_LAYERS = 1000
MAX_DIMENSION = 1 << 24
INFINITY = {"__float__": "Infinity"}  # written by transformers 5, because JSON has no infinity
MAX_NUMBER = 1e12  # default upper limit of a number; rotary bases reach 1e9


class Config(Struct, frozen=True):
    """A table of metadata values, with the path of the file for error messages.

    ``prefix`` is put before every key. ``parent`` is the name of the enclosing table, followed by a dot; "" at the top
    level. ``aliases`` maps keys to the names that the file uses instead (``with_aliases``). ``read`` collects the full
    names of the keys that were read, because ``model/unread_keys.py`` checks the other keys. ``tensors`` collects the
    names of tensors that were read as metadata. ``task`` is the task that the user asks for ("": the task that the file
    states), and ``adapter`` is the name of the adapter ("": none). ``token_id`` finds the id of a token in the
    vocabulary (None: it has no such token).
    """

    values: Mapping[str, Any]
    path: Path
    prefix: str = ""
    parent: str = ""
    read: set[str] = field(default_factory=set)
    tensors: set[str] = field(default_factory=set)
    aliases: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    adapter: str = ""
    token_id: Callable[[str], int | None] = lambda token: None

    def with_prefix(self, prefix: str) -> Config:
        """A copy with another prefix."""
        return replace(self, prefix=prefix)

    def with_aliases(self, aliases: Mapping[str, str]) -> Config:
        """A copy in which an absent key has the value of its alias.

        Raises:
            FileFormatError: a key and its alias are both present and differ.
        """
        for key, alias in aliases.items():
            self.check_equal(key, self, alias)
        used = {key: alias for key, alias in aliases.items() if not self.has(key) and self.has(alias)}
        return replace(self, aliases=used)

    def _stored(self, key: str) -> str:
        return self.prefix + self.aliases.get(key, key)

    def name(self, key: str) -> str:
        """The full name of a key in the file, with its table and prefix."""
        return self.parent + self._stored(key)

    def value(self, key: str) -> Any:
        """The stored value; None if the key is absent. The key counts as read."""
        self.read.add(self.name(key))
        return self.values.get(self._stored(key))

    def has(self, key: str) -> bool:
        """True if the key has a value other than null. The key does not count as read."""
        return self.values.get(self._stored(key)) is not None

    def is_present(self, key: str) -> bool:
        """True if the key is present, even with the value null. The key does not count as read."""
        return self._stored(key) in self.values

    def is_list(self, key: str) -> bool:
        """True if the value is a list or an array. The key counts as read."""
        import numpy as np

        return isinstance(self.value(key), (list, np.ndarray))

    def error(self, key: str, problem: str) -> FileFormatError:
        """The error for a wrong value of a key."""
        return FileFormatError(self.path, self.name(key), problem)

    def _checked(self, key: str, default: Any, check: Callable[[Any], bool], expected: str) -> Any:
        value = self.value(key)
        if value is None:
            if default is _MISSING:
                raise self.error(key, f"missing; it must be {expected}")
            return default
        if not check(value):
            raise self.error(key, f"is {brief(value)}; it must be {expected}")
        return value

    def count(self, key: str, default: int | None = _MISSING, *, limit: int = MAX_DIMENSION) -> Any:
        """A whole number from 1 to ``limit``."""
        return self._checked(
            key, default, lambda v: type(v) is int and 1 <= v <= limit, f"a whole number from 1 to {limit:,}"
        )

    def number(self, key: str, default: float = _MISSING, *, low: float = 0.0, high: float = MAX_NUMBER) -> float:
        """A number above ``low`` and at most ``high``."""

        def check(v: Any) -> bool:
            return type(v) in (int, float) and low < v <= high

        return float(self._checked(key, default, check, f"a number above {low:g} and at most {high:g}"))

    def check_count(self, key: str, expected: int, why: str) -> None:
        """Check that a whole number, if present, is ``expected``. ``why`` ends the error message."""
        value = self.count(key, expected)
        if value != expected:
            raise self.error(key, f"is {value:,}; it must be {expected:,}, {why}")

    def optional_count(self, key: str, required: bool = False, *, limit: int = MAX_DIMENSION) -> int:
        """A whole number, or 0 if the value is absent, false or 0 (for example: no window, no experts)."""
        if required and not self.has(key):
            raise self.error(key, f"missing; it must be a whole number from 0 to {limit:,}")
        value = self.value(key)
        return 0 if value is False or (type(value) is int and value == 0) else int(self.count(key, 0, limit=limit))

    def optional_number(self, key: str, default: float = 0.0) -> float:
        """A positive number; 0 if the value is 0 or null (such as: no soft-cap); ``default`` if the key is absent."""
        value = self.value(key)
        if not self.is_present(key):
            return default
        return 0.0 if type(value) in (int, float) and value == 0 else self.number(key, 0.0)

    def divisor(self, key: str, of_key: str, default: int = _MISSING, *, of: int | None = None) -> int:
        """A whole number that divides ``of``, by default the value of ``of_key``."""
        value, of = self.count(key, default), self.count(of_key) if of is None else of
        if of % value:
            raise self.error(key, f"is {value}, which does not divide {self.name(of_key)} = {of}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        return bool(self._checked(key, default, lambda v: isinstance(v, bool), "true or false"))

    def text(self, key: str, default: str = _MISSING) -> str:
        """A string."""
        return str(self._checked(key, default, lambda v: isinstance(v, str), "a string"))

    def token_ids(self, key: str, vocabulary: int) -> None:
        """Check that a token id, or each id of a list, is below ``vocabulary``. Null and -1 mean no token."""
        value = self.value(key)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (type(token) is int and -1 <= token < vocabulary):
                raise self.error(key, f"is {brief(token)}; it must be a token id, from 0 to {vocabulary - 1:,}")

    def token(self, key: str, vocabulary: int) -> int | None:
        """A token id below ``vocabulary``; None if the value is absent or -1."""
        self.token_ids(key, vocabulary)
        value = self.value(key)
        if isinstance(value, list):
            raise self.error(key, f"is {brief(value)}; it must be a token id")
        return None if value is None or value < 0 else int(value)

    def table(self, key: str) -> Config:
        """A nested table; empty if absent."""
        value = self._checked(key, {}, lambda v: isinstance(v, Mapping), "a table")
        return Config(value, self.path, parent=f"{self.name(key)}.", read=self.read, tensors=self.tensors)

    def choices(self, key: str, choices: Mapping[str, T], count: int) -> list[T] | None:
        """The choices named by a list of ``count`` strings; None if the key is absent."""

        def check(v: Any) -> bool:
            valid = isinstance(v, list) and len(v) == count
            return valid and all(isinstance(item, str) and item in choices for item in v)

        value = self._checked(key, None, check, f"a list of {count} of {', '.join(sorted(choices))}")
        return None if value is None else [choices[item] for item in value]

    def flags(self, key: str, count: int) -> list[bool] | None:
        """A list of ``count`` booleans, or of numbers that are 0 or 1; None if the key is absent."""
        import numpy as np

        def check(v: Any) -> bool:
            valid = isinstance(v, (list, np.ndarray)) and len(v) == count
            return valid and all(isinstance(item, (bool, int, np.bool_, np.integer)) and item in (0, 1) for item in v)

        value = self._checked(key, None, check, f"a list of {count} numbers that are 0 or 1")
        return None if value is None else [bool(item) for item in value]

    def number_set(self, key: str, limit: int) -> set[int]:
        """The whole numbers of a list, from 0 to ``limit`` - 1; empty if the key is absent."""

        def check(v: Any) -> bool:
            return isinstance(v, list) and all(type(item) is int and 0 <= item < limit for item in v)

        return set(self._checked(key, [], check, f"a list of whole numbers from 0 to {limit - 1}"))

    def by_layer(self, key: str, layers: int) -> list[int]:
        """A whole number >= 0 for each layer, from a list of ``layers`` numbers or from one number for all layers."""
        import numpy as np

        if not self.is_list(key):
            return [self.optional_count(key, required=True)] * layers

        def check(v: Any) -> bool:
            integers = all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in v)
            return len(v) == layers and integers and all(0 <= item <= MAX_DIMENSION for item in v)

        expected = f"a whole number, or a list of {layers}, from 0 to {MAX_DIMENSION:,}"
        return [int(item) for item in self._checked(key, _MISSING, check, expected)]

    def number_tuple(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of numbers >= 0, as long as ``default``. Infinity may be ``inf`` or transformers' ``INFINITY``."""

        def infinite(v: Any) -> bool:
            return v == INFINITY or (isinstance(v, float) and v == math.inf)

        def check(v: Any) -> bool:
            valid = isinstance(v, (list, tuple)) and len(v) == len(default)
            return valid and all(
                infinite(item) or (type(item) in (int, float) and 0 <= item <= MAX_NUMBER) for item in v
            )

        numbers = self._checked(key, default, check, f"a list of {len(default)} numbers from 0")
        return tuple(math.inf if infinite(item) else float(item) for item in numbers)

    def deviations(self, key: str, count: int) -> list[float]:
        """``count`` multiples of a standard deviation, from -8 to 8 or minus infinity; empty if the key is absent.

        Between these limits, the cumulative normal distribution in float64 is above 0 and below 1.
        """
        import numpy as np

        def valid(item: Any) -> bool:
            number = isinstance(item, (int, float, np.number)) and not isinstance(item, bool)
            return number and (item == -math.inf or -8 <= item <= 8)

        def check(v: Any) -> bool:
            return isinstance(v, (list, np.ndarray)) and len(v) == count and all(map(valid, v))

        expected = f"a list of {count} numbers from -8 to 8, or minus infinity"
        return [float(item) for item in self._checked(key, [], check, expected)]

    def positive_numbers(self, key: str) -> list[float]:
        """A list of positive numbers."""

        def check(v: Any) -> bool:
            return isinstance(v, list) and all(type(item) in (int, float) and 0 < item <= MAX_NUMBER for item in v)

        return [float(item) for item in self._checked(key, _MISSING, check, "a list of positive numbers")]

    def count_choice(self, key: str, choices: Mapping[int, Any]) -> int:
        """A whole number among the choices; 0 if the value is absent or 0."""
        value = self.optional_count(key)
        if value and value not in choices:
            known = ", ".join(map(str, sorted(choices)))
            raise UnsupportedModel(
                f"{self.path.name}: {self.name(key)} is {value}, which is not supported (known: {known})"
            )
        return value

    def check_equal(self, key: str, other: Config, other_key: str) -> None:
        """Check that two keys with the same meaning have equal values, if both are present."""
        value, other_value = self.value(key), other.value(other_key)
        if value is not None and other_value is not None and value != other_value:
            raise self.error(
                key, f"is {brief(value)}, but {other.name(other_key)} is {brief(other_value)}: remove one of the two"
            )

    def choice(self, key: str, choices: Mapping[str, T], default: str = _MISSING) -> T:
        """The choice that a string names. The error for an unknown string lists the known names."""
        value = self.text(key, default)
        if value not in choices:
            known = ", ".join(sorted(choices))
            raise UnsupportedModel(
                f"{self.path.name}: {self.name(key)} is {brief(value)}, which is not supported (known: {known})"
            )
        return choices[value]

    def refuse(self, key: str, *harmless: Any) -> None:
        """Refuse an option that is not implemented, unless its value is null or one of ``harmless``.

        Raises:
            UnsupportedModel: the value would change the computation.
        """
        value = self.value(key)
        if value is not None and not (isinstance(value, (bool, int, str, dict, list)) and value in harmless):
            raise UnsupportedModel(f"{self.path.name}: {self.name(key)} = {brief(value)} is not supported")
