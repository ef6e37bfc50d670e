"""A body of a request in OpenAI's form, whose fields are checked as they are read.

Fields that change nothing here are passed over. Any other field that nobody reads is an option of a generation, such as
``top_k``, or an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.util.checks import real, whole

HARMLESS = frozenset(
    {
        *("user", "store", "metadata", "service_tier", "stream_options", "verbosity"),
        *("prompt_cache_key", "prompt_cache_retention", "safety_identifier"),
    }
)
"""Fields about accounts, storage, caching and streams, which do not change an answer."""
NOT_HERE = {
    "modalities": ["text"],
    "functions": [],
    "function_call": "none",
}
"""Fields of what is not implemented, with the only value that they may have."""
RENAMED = {"max_completion_tokens": "max_new_tokens", "max_tokens": "max_new_tokens"}
PLAIN: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""OpenAI's defaults, where a model's file recommends none."""
MOST_CHOICES = 64
MOST_LOGPROBS = 20
MOST_BIAS = 100.0


class Body:
    """The fields of a request. ``take`` reads one; ``options`` is what is left."""

    def __init__(self, fields: Any) -> None:
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise InvalidRequest(f"the body is {brief(fields)}: it must be an object with named fields")
        # In OpenAI's requests null is the same as nothing.
        self._fields = {name: value for name, value in fields.items() if value is not None}

    def take(self, name: str, default: Any = None) -> Any:
        """A field's value."""
        return self._fields.pop(name, default)

    def required(self, name: str) -> Any:
        """A field's value. Raises InvalidRequest if there is none."""
        if name not in self._fields:
            raise InvalidRequest(f"{name} is missing: the request must have it")
        return self._fields.pop(name)

    def flag(self, name: str) -> bool:
        """A field that is true or false; false if absent."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}={brief(value)}: must be true or false")
        return value

    def count(self, name: str, low: int, high: int) -> int | None:
        """A whole number; None if absent."""
        value = self.take(name)
        return None if value is None else whole(name, value, low, high)

    def model(self) -> str:
        """The name of the model."""
        name = self.required("model")
        if not isinstance(name, str):
            raise InvalidRequest(f"model={brief(name)}: must be the name of a model")
        return name

    def stream_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        options = self.take("stream_options", {})
        if not isinstance(options, Mapping) or not isinstance(options.get("include_usage", False), bool):
            raise InvalidRequest(f"stream_options={brief(options)}: must be an object with include_usage")
        return bool(options.get("include_usage", False))

    def rest(self) -> dict[str, Any]:
        """The fields that nobody has taken, without those that change nothing."""
        for name, only in NOT_HERE.items():
            if (value := self.take(name)) is not None and value != only:
                raise InvalidRequest(f"{name}={brief(value)}: not supported yet; leave it out")
        return {name: value for name, value in self._fields.items() if name not in HARMLESS}

    def options(self, recommended: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a generation, over what the model's file recommends or OpenAI's defaults."""
        if (bias := self.take("logit_bias")) is not None:
            self._fields["logit_bias"] = _bias(bias)
        asked = {RENAMED.get(name, name): value for name, value in self.rest().items()}
        return {**(recommended or PLAIN), **asked}


def _bias(value: Any) -> dict[int, float]:
    """OpenAI's ``logit_bias``: numbers from -100 to 100 by token ids, which JSON has as strings."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"logit_bias={brief(value)}: must be an object of token ids and numbers")
    found = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise InvalidRequest(f"logit_bias has {brief(token)}: its names must be token ids")
        found[int(str(token)[:18])] = real(f"logit_bias[{token}]", bias, -MOST_BIAS, MOST_BIAS)
    return found
