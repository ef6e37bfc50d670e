"""Request bodies. A Struct declares the fields of an API, and the sampler steps declare the generation options.

    class TokenizeFields(ModelFields):
        text: str = ""

    TOKENIZE = BodyType(TokenizeFields)

A body type decodes bodies, describes a wrong field in one line, and gives the JSON schema for /openapi.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct, ValidationError

from pellucid.errors import InvalidRequest, brief
from pellucid.serve.generation_options import ABSENT, checked_options, ignored_schema
from pellucid.serve.json_schema import Schema, alternatives, cleaned, closed_object, described, expected, schema_of

MAX_CHOICES = 64
MAX_LOGPROBS = 20
MAX_TEXTS = 2048
MISSING = re.compile(r"Object missing required field `(.*)`")
UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
PLACE = re.compile(r" - at `(?:key` in `)?\$\.?(.*)`$", re.DOTALL)
MISMATCH = ("Expected ", "Invalid ")
"""Beginnings of msgspec's messages about a value. Messages of a ``__post_init__`` begin with the name of a field."""

Count: TypeAlias = Annotated[int, Meta(ge=1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, title="a token id")]
Choices: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TopLogprobs: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
Prompt: TypeAlias = Annotated[
    str | list[str | TokenId | list[TokenId]], Meta(title="a text, token ids, or a list of these")
]
Texts: TypeAlias = Annotated[str | list[str], Meta(title="a text or a list of texts")]
TokenLimit: TypeAlias = Annotated[int, Meta(ge=-1)]
"""vLLM's maximum number of tokens of a text, which is cut; -1: the context of the model."""
TruncationSide: TypeAlias = Literal["Right", "Left", "right", "left"]
"""The end of a text that text-embeddings-inference cuts off."""


class Fields(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the objects in a request."""


class ModelFields(Fields, frozen=True, kw_only=True):
    """Base of request bodies. If ``model`` is empty, the server's first model answers."""

    model: str = ""


F = TypeVar("F", bound=Fields)


@dataclass(frozen=True)
class BodyRules:
    """Fields of a body besides the fields of its Struct.

    ``options`` are the accepted generation options with their schemas. ``renamed`` maps the API's names of options to
    Pellucid's. ``defaults`` are options for models whose file recommends no options. ``absent`` maps options to values
    that count as an absent field. ``ignored`` are fields that do not change an answer, and may be nested, such as
    ``tools[].strict``. ``only`` maps each field that is not implemented to the only value that it may have.
    """

    options: Mapping[str, Schema] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    ignored: Set[str] = frozenset()
    only: Mapping[str, Any] = field(default_factory=dict)


PLAIN_RULES = BodyRules(ignored=frozenset({"user"}))
"""The rules of requests that generate nothing."""


@dataclass(frozen=True)
class RequestBody(Generic[F]):
    """A decoded body: its ``fields``, its generation options under the client's names, and its JSON (``raw``)."""

    fields: F
    given: dict[str, Any]
    raw: Mapping[str, Any]
    rules: BodyRules

    def options(self, recommended: Mapping[str, Any]) -> dict[str, Any]:
        """Generation options of the request, completed by the model file's recommendations or the API's defaults."""
        return checked_options(self.given, self.rules.renamed, recommended or self.rules.defaults)


def side_of(direction: TruncationSide) -> Literal["right", "left"]:
    """The end of a text that is cut off."""
    return "left" if direction in ("Left", "left") else "right"


def listed_texts(name: str, texts: Sequence[Any] | str) -> Sequence[Any]:
    """A text or texts, as a list. Raises InvalidRequest for more than ``MAX_TEXTS`` texts."""
    listed = [texts] if isinstance(texts, str) else texts
    if len(listed) > MAX_TEXTS:
        raise InvalidRequest(f"{name} has {len(listed):,} texts; the limit is {MAX_TEXTS:,}")
    return listed


def _has_surrogates(value: Any) -> bool:
    """True if a text in a JSON value has a lone surrogate."""
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(_has_surrogates, [*value, *value.values()]))
    return isinstance(value, list) and any(map(_has_surrogates, value))


class BodyType(Generic[F]):
    """The bodies of a route. ``required`` are further mandatory fields, which the route itself checks."""

    def __init__(self, struct: type[F], rules: BodyRules | None = None, required: Sequence[str] = ()) -> None:
        self.struct, self.rules, self.required = struct, rules or BodyRules(), required

    @cached_property
    def schema(self) -> Schema:
        rules, own = self.rules, schema_of(self.struct)
        renamed = {name: rules.options[option] for name, option in rules.renamed.items() if rules.options}
        only = {name: {"const": value, "description": "No other value."} for name, value in rules.only.items()}
        ignored = {name: ignored_schema(name) for name in sorted(rules.ignored)}
        properties = {**rules.options, **renamed, **only, **own["properties"]}
        for path, about in ignored.items():
            described(properties, path, about)
        return {**closed_object(properties), "required": [*own.get("required", ()), *self.required]}

    def decode(self, body: Any, where: str = "") -> RequestBody[F]:
        """Check a JSON value. ``where`` is the name of the field that holds the body, for errors."""
        if not isinstance(body, dict):
            raise InvalidRequest(f"the body is {brief(body)}: it must be an object with named fields")
        rules, own, absent = self.rules, self.struct.__struct_fields__, {**ABSENT, **self.rules.absent}
        fields, options = dict[str, Any](), dict[str, Any]()
        for name, value in cleaned(self.schema, body).items():
            if value in absent.get(name, ()):
                continue
            if name in own:
                fields[name] = value
            elif name in rules.only:
                if value != rules.only[name]:
                    raise InvalidRequest(f"{name}={brief(value)}: not supported; leave it out")
            elif name in rules.options or name in rules.renamed:
                options[name] = value
            else:
                raise self._unknown(where, name, self.schema)
        try:
            return RequestBody(msgspec.convert(fields, self.struct), options, body, rules)
        except ValidationError as error:
            raise self._wrong(str(error), fields) from None
        except UnicodeEncodeError:  # JSON can escape a lone surrogate, which msgspec cannot compare with a known text
            raise InvalidRequest(
                f"{next(filter(lambda name: _has_surrogates(fields[name]), fields))} has a lone surrogate: send valid "
                "Unicode"
            ) from None

    def _wrong(self, message: str, fields: dict[str, Any]) -> InvalidRequest:
        """Convert a message of msgspec to one line with the field, its value, and the allowed values."""
        place = PLACE.search(message)
        path, message = place[1] if place else "", PLACE.sub("", message)
        schema: Schema = self.schema
        value: Any = fields
        for step in re.findall(r"[^.\[\]]+", path):
            here = alternatives(schema, value)
            value = value[int(step)] if isinstance(value, list) else value.get(step)
            inner = [one["items"] if "items" in one else one.get("properties", {}).get(step, {}) for one in here]
            schema = inner[0] if len(inner) == 1 else {"anyOf": [one for one in inner if one]}
        where = f"{path}." if path else ""
        if match := MISSING.fullmatch(message):
            return InvalidRequest(f"{where}{match[1]} is missing: the request must have it")
        if match := UNKNOWN.fullmatch(message):
            known = (alternatives(schema, value) or [schema])[0]
            return self._unknown(path, match[1], known)
        if not message.startswith(MISMATCH):
            return InvalidRequest(f"{where}{message}")
        subject = f"{path} is empty" if "of length >= 1" in message else f"{path}={brief(value)}"
        return InvalidRequest(f"{subject}: must be {expected(schema)}")

    def _unknown(self, path: str, name: str, schema: Schema) -> InvalidRequest:
        from difflib import get_close_matches  # slow to import, and only this error needs it

        known, where = schema.get("properties", {}), f"{path}." if path else ""
        near = get_close_matches(name[:100], known, 3, 0.5)
        others = f"it may have {', '.join(known)}" if where else "GET /openapi.json shows all fields of this request"
        hint = f"did you mean {' or '.join(where + one for one in near)}?" if near else others
        return InvalidRequest(f"unknown option {brief(where + name)}: {hint}")
