"""A request body whose fields are checked as they are read.

Fields that change nothing are ignored. Any other unread field is a generation option, such as ``top_k``, or an error
that names the field. So every API accepts the generation options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.sample.options import check_of
from pellucid.sample.recommended import with_recommended
from pellucid.serve.shape import closed
from pellucid.util.checks import real, whole

PLAIN: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
"""The defaults of OpenAI and Anthropic: the model's own distribution."""
ALSO: Mapping[str, str] = {
    "n_predict": "max_new_tokens",
    "repeat_penalty": "repetition_penalty",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
    "guided_grammar": "grammar",
}
"""Option names of llama.cpp's and vLLM's clients, which every API accepts."""
STRUCTURED: Mapping[str, str] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choices",
    "grammar": "grammar",
}
"""Option for each key of vLLM's ``structured_outputs``."""
MOST_CHOICES = 64
MOST_LOGPROBS = 20
MOST_BIAS = 100.0
MOST_TEXTS = 2048


@dataclass(frozen=True)
class BodyForm:
    """Rules for the request bodies of an API.

    ``harmless`` are fields that do not change an answer. ``only`` maps each field that is not implemented to the only
    value that it may have. ``renamed`` maps the API's names of options to Pellucid's. ``defaults`` are options for
    models whose file recommends none. ``absent`` maps fields to values that count as an absent field.
    """

    harmless: Set[str] = frozenset()
    only: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Body:
    """Fields of a request body. ``take`` and its variants read and remove a field; ``options`` reads the rest."""

    def __init__(self, fields: Any, form: BodyForm) -> None:
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise InvalidRequest(f"the body is {brief(fields)}: it must be an object with named fields")
        # In every API a null field is the same as an absent field.
        self._fields = {
            name: value
            for name, value in fields.items()
            if value is not None and value not in form.absent.get(name, ())
        }
        self._form = form

    def take(self, name: str, default: Any = None) -> Any:
        """Remove a field and return its value."""
        return self._fields.pop(name, default)

    def drop(self, name: str, value: int) -> bool:
        """Remove a field if it has this value. Returns True if it had."""
        found = self._fields.get(name)
        has = type(found) is int and found == value
        if has:
            del self._fields[name]
        return has

    def holds(self, name: str) -> bool:
        """True if a field is present and not taken, even if it is empty."""
        return name in self._fields

    def has(self, name: str) -> bool:
        """True if a field is present, not taken and not empty."""
        return bool(self._fields.get(name))

    def required(self, name: str) -> Any:
        """Remove a field and return its value. Raises InvalidRequest if it is missing."""
        if name not in self._fields:
            raise InvalidRequest(f"{name} is missing: the request must have it")
        return self._fields.pop(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Take a boolean field."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}={brief(value)}: must be true or false")
        return value

    def count(self, name: str, low: int, high: int) -> int | None:
        """Take an integer field; None if absent."""
        value = self.take(name)
        return None if value is None else whole(name, value, low, high)

    def text(self, name: str) -> str | None:
        """Take a string field; None if absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name}={brief(value)}: must be a text")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """Take an object field; empty if absent."""
        value = self.take(name, {})
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InvalidRequest(f"{name}={brief(value)}: must be an object")
        return value

    def objects(self, name: str) -> list[Mapping[str, Any]]:
        """Take a list of objects; empty if absent."""
        value = self.take(name, [])
        if not isinstance(value, list):
            raise InvalidRequest(f"{name}={brief(value)}: must be a list")
        for at, one in enumerate(value):
            if not isinstance(one, Mapping):
                raise InvalidRequest(f"{name}[{at}]={brief(one)}: must be an object")
        return value

    def model(self, usual: str = "") -> str:
        """Take the name of the model. Without a name in the request it is ``usual``, for clients of one-model servers.

        Raises InvalidRequest if the request has no name and ``usual`` is empty.
        """
        name = self.take("model", usual) if usual else self.required("model")
        if not isinstance(name, str):
            raise InvalidRequest(f"model={brief(name)}: must be the name of a model")
        return name or usual

    def texts(self, name: str) -> list[str]:
        """Take a string or a list of strings, as a list. Raises InvalidRequest if there are too many."""
        asked = self.required(name)
        found = [asked] if isinstance(asked, str) else asked
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise InvalidRequest(f"{name}={brief(asked)}: must be a text or a list of texts")
        if len(found) > MOST_TEXTS:
            raise InvalidRequest(f"{name} has {len(found):,} texts; the limit is {MOST_TEXTS:,}")
        return found

    def rest(self) -> dict[str, Any]:
        """Fields that are not taken, without harmless fields. Raises InvalidRequest if one is not implemented."""
        for name, only in self._form.only.items():
            if (value := self.take(name)) is not None and value != only:
                raise InvalidRequest(f"{name}={brief(value)}: not supported; leave it out")
        return {name: value for name, value in self._fields.items() if name not in self._form.harmless}

    def options(self, recommended: Mapping[str, Any]) -> dict[str, Any]:
        """Generation options of the request, completed by the model file's recommendations or the API's defaults."""
        if (bias := self.take("logit_bias")) is not None:
            self._fields["logit_bias"] = _bias(bias)
        asked = _structured(self.mapping("structured_outputs"))
        names, known = dict.fromkeys(asked, "structured_outputs"), {**ALSO, **self._form.renamed}
        for name, value in self.rest().items():
            option = known.get(name, name)
            if option in asked:
                raise InvalidRequest(
                    f"{names[option]} and {name} are names of one option: remove one of the two"
                )
            # An error names the field as the client wrote it.
            check = check_of(option) if option != name else None
            asked[option], names[option] = (check(name, value) if check else value), name
        if "json_schema" in asked:
            asked["json_schema"] = closed(asked["json_schema"])
        return with_recommended(asked, recommended or self._form.defaults)


def add_ends(options: dict[str, Any], ends: Sequence[int]) -> None:
    """Add stop tokens to options. A ``stop_token_ids`` that is not a list stays: the option's check rejects it."""
    given = options.get("stop_token_ids") or []
    if ends and isinstance(given, list):
        options["stop_token_ids"] = [*given, *ends]


def _structured(given: Mapping[str, Any]) -> dict[str, Any]:
    """Convert vLLM's ``structured_outputs`` to options."""
    found = dict[str, Any]()
    for name, value in given.items():
        if name in STRUCTURED and value is not None:
            found[STRUCTURED[name]] = value
        elif name == "json_object" and value is True and given.get("json") is None:
            found["json_schema"] = {"type": "object"}
        elif value is not None and value is not False:
            raise InvalidRequest(
                f"structured_outputs.{name}={brief(value)}: not supported; give one of json, json_object=true, "
                f"regex, choice and grammar"
            )
    return found


def _bias(value: Any) -> dict[int, float]:
    """Convert OpenAI's ``logit_bias``: numbers from -100 to 100, by token ids as strings."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"logit_bias={brief(value)}: must be an object of token ids and numbers")
    found = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise InvalidRequest(f"logit_bias has {brief(token)}: its names must be token ids")
        found[int(str(token)[:18])] = real(f"logit_bias[{token}]", bias, -MOST_BIAS, MOST_BIAS)
    return found
