"""A body of a request, whose fields are checked as they are read.

Fields that change nothing here are passed over. Any other field that nobody reads is an option of a generation, such as
``top_k``, or an error that names it. So the options of a generation are accepted by every API.
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
"""Names of options that llama.cpp's and vLLM's clients use, in every API."""
STRUCTURED: Mapping[str, str] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choices",
    "grammar": "grammar",
}
"""Options by their names in vLLM's ``structured_outputs``."""
MOST_CHOICES = 64
MOST_LOGPROBS = 20
MOST_BIAS = 100.0
MOST_TEXTS = 2048


@dataclass(frozen=True)
class BodyForm:
    """What an API's bodies have in common.

    ``harmless`` are fields that do not change an answer; ``only`` are fields of what is not implemented, with the only
    value that they may have; ``renamed`` are the API's names of options; ``defaults`` are its options where a model's
    file recommends none; ``absent`` are values of fields that stand for no value.
    """

    harmless: Set[str] = frozenset()
    only: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Body:
    """The fields of a request. ``take`` reads one; ``options`` is what is left."""

    def __init__(self, fields: Any, form: BodyForm) -> None:
        if not isinstance(fields, Mapping) or not all(isinstance(name, str) for name in fields):
            raise InvalidRequest(f"the body is {brief(fields)}: it must be an object with named fields")
        # In the requests of all APIs null is the same as nothing.
        self._fields = {
            name: value
            for name, value in fields.items()
            if value is not None and value not in form.absent.get(name, ())
        }
        self._form = form

    def take(self, name: str, default: Any = None) -> Any:
        """A field's value."""
        return self._fields.pop(name, default)

    def drop(self, name: str, value: int) -> bool:
        """Take a field if it has this value. Returns whether it had."""
        found = self._fields.get(name)
        has = type(found) is int and found == value
        if has:
            del self._fields[name]
        return has

    def holds(self, name: str) -> bool:
        """True for a field that nobody has taken yet, also if it is empty."""
        return name in self._fields

    def has(self, name: str) -> bool:
        """Whether there is a field that nobody has taken, and it is not empty."""
        return bool(self._fields.get(name))

    def required(self, name: str) -> Any:
        """A field's value. Raises InvalidRequest if there is none."""
        if name not in self._fields:
            raise InvalidRequest(f"{name} is missing: the request must have it")
        return self._fields.pop(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """A field that is true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}={brief(value)}: must be true or false")
        return value

    def count(self, name: str, low: int, high: int) -> int | None:
        """A whole number; None if absent."""
        value = self.take(name)
        return None if value is None else whole(name, value, low, high)

    def text(self, name: str) -> str | None:
        """A text; None if absent."""
        value = self.take(name)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{name}={brief(value)}: must be a text")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object; an empty one if absent."""
        value = self.take(name, {})
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise InvalidRequest(f"{name}={brief(value)}: must be an object")
        return value

    def objects(self, name: str) -> list[Mapping[str, Any]]:
        """A list of objects; an empty one if absent."""
        value = self.take(name, [])
        if not isinstance(value, list):
            raise InvalidRequest(f"{name}={brief(value)}: must be a list")
        for at, one in enumerate(value):
            if not isinstance(one, Mapping):
                raise InvalidRequest(f"{name}[{at}]={brief(one)}: must be an object")
        return value

    def model(self, usual: str = "") -> str:
        """The name of the model; ``usual`` where the request names none, as clients of servers with one model do.

        Raises InvalidRequest if it names none and there is no usual one.
        """
        name = self.take("model", usual) if usual else self.required("model")
        if not isinstance(name, str):
            raise InvalidRequest(f"model={brief(name)}: must be the name of a model")
        return name or usual

    def texts(self, name: str) -> list[str]:
        """A text, or a list of texts. Raises InvalidRequest if there are too many."""
        asked = self.required(name)
        found = [asked] if isinstance(asked, str) else asked
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise InvalidRequest(f"{name}={brief(asked)}: must be a text or a list of texts")
        if len(found) > MOST_TEXTS:
            raise InvalidRequest(f"{name} has {len(found):,} texts; the limit is {MOST_TEXTS:,}")
        return found

    def rest(self) -> dict[str, Any]:
        """The fields that nobody has taken, without those that change nothing."""
        for name, only in self._form.only.items():
            if (value := self.take(name)) is not None and value != only:
                raise InvalidRequest(f"{name}={brief(value)}: not supported; leave it out")
        return {name: value for name, value in self._fields.items() if name not in self._form.harmless}

    def options(self, recommended: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a generation, over what the model's file recommends or the API's defaults."""
        if (bias := self.take("logit_bias")) is not None:
            self._fields["logit_bias"] = _bias(bias)
        asked = _structured(self.mapping("structured_outputs"))
        names, known = dict.fromkeys(asked, "structured_outputs"), {**ALSO, **self._form.renamed}
        for name, value in self.rest().items():
            option = known.get(name, name)
            if option in asked:
                raise InvalidRequest(
                    f"{names[option]} and {name} are names of one option: leave one of them out"
                )
            # The client's name stands in the error, if there is one.
            check = check_of(option) if option != name else None
            asked[option], names[option] = (check(name, value) if check else value), name
        if "json_schema" in asked:
            asked["json_schema"] = closed(asked["json_schema"])
        return with_recommended(asked, recommended or self._form.defaults)


def add_ends(options: dict[str, Any], ends: Sequence[int]) -> None:
    """Let further tokens end a generation. What is no list is left as it is, and refused as an option."""
    given = options.get("stop_token_ids") or []
    if ends and isinstance(given, list):
        options["stop_token_ids"] = [*given, *ends]


def _structured(given: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's ``structured_outputs`` as options."""
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
    """OpenAI's ``logit_bias``: numbers from -100 to 100 by token ids, which JSON has as strings."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"logit_bias={brief(value)}: must be an object of token ids and numbers")
    found = {}
    for token, bias in value.items():
        if not str(token).isascii() or not str(token).isdigit():
            raise InvalidRequest(f"logit_bias has {brief(token)}: its names must be token ids")
        found[int(str(token)[:18])] = real(f"logit_bias[{token}]", bias, -MOST_BIAS, MOST_BIAS)
    return found
