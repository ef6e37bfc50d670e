"""Edits in the page's requests: changes of points, and of the features of the server's dictionaries."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.llm import LLM
from pellucid.serve.request_body import Fields, TokenId
from pellucid.serve.served_model import ServedModel
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import Edit, ablate, add, mask, replace, scale

MAX_EDITS = 256
KINDS: Mapping[str, Callable[..., Edit]] = {
    "ablate": ablate,
    "scale": scale,
    "add": add,
    "replace": replace,
    "mask": mask,
}


class EditFields(Fields, frozen=True):
    """An edit of the values of a point: "ablate", "scale" with ``factor``, "add" or "replace" with ``values``, "mask".

    Values are numbers, or base64 of little-endian float32 with their ``shape``.

    "feature" changes a ``feature`` of a ``dictionary`` of the server, at the positions ``tokens``: it has one of
    ``clamp`` (the new activation), ``factor``, and ``steer`` (what is added to the activation). ``layer`` names the
    layer if there are several. "reconstruct" replaces values by the dictionary's reconstruction.
    """

    edit: Literal["ablate", "scale", "add", "replace", "mask", "feature", "reconstruct"]
    point: str | None = None
    factor: float | None = None
    values: float | list[Any] | str | None = None
    shape: list[TokenId] | None = None
    dictionary: str | None = None
    feature: TokenId | list[TokenId] | None = None
    layer: TokenId | None = None
    clamp: float | None = None
    steer: float | None = None
    tokens: str | None = None


FEATURE_FIELDS = ("dictionary", "feature", "layer", "clamp", "steer", "tokens")


def edits_of(edits: Sequence[EditFields], llm: ServedModel) -> list[Edit]:
    """The edits of a request.

    Raises:
        InvalidRequest: an edit is wrong; the message names it.
    """
    if len(edits) > MAX_EDITS:
        raise InvalidRequest(f"edits has {len(edits):,} edits; the limit is {MAX_EDITS:,}")
    found = [edit for at, one in enumerate(edits) for edit in _edits(f"edits[{at}]", one, llm)]
    if len(found) > MAX_EDITS:
        raise InvalidRequest(
            f"edits: the edits of features change {len(found):,} values; the limit is {MAX_EDITS:,}"
        )
    return found


def dictionary_of(field: str, name: str | None, llm: ServedModel) -> Dictionary:
    """The dictionary with a name.

    Raises:
        InvalidRequest: the model has no such dictionary, or runs in other processes.
    """
    if not isinstance(llm, LLM):
        raise InvalidRequest(
            f"{field}={brief(name)}: features can be changed only in the server's own process: serve without replicas"
        )
    if name is None or name not in llm.dictionaries:
        known = ", ".join(llm.dictionaries)
        has = (
            f"must be one of {brief(known)}" if known else "the server has none: start it with --dictionaries"
        )
        raise InvalidRequest(f"{field}={brief(name)}: {has}")
    return llm.dictionaries[name]


def _edits(name: str, given: EditFields, llm: ServedModel) -> list[Edit]:
    of_feature = given.edit in ("feature", "reconstruct")
    for field in ("point", "values", "shape") if of_feature else FEATURE_FIELDS:
        if getattr(given, field) is not None:
            raise InvalidRequest(f"{name} has {field!r}, which {given.edit} does not take")
    if not of_feature:
        return [_edit(name, given)]
    dictionary = dictionary_of(f"{name}.dictionary", given.dictionary, llm)
    layer, tokens = given.layer, ":" if given.tokens is None else given.tokens
    if given.edit == "reconstruct":
        for field in ("feature", "clamp", "factor", "steer"):
            if getattr(given, field) is not None:
                raise InvalidRequest(f"{name} has {field!r}, which reconstruct does not take")
        return dictionary.reconstruct(layer=layer, tokens=tokens)
    numbers = {field: getattr(given, field) for field in ("clamp", "factor", "steer")}
    given_numbers = {field: number for field, number in numbers.items() if number is not None}
    if given.feature is None or len(given_numbers) != 1:
        raise InvalidRequest(f"{name}: give a feature, and one of clamp, factor and steer")
    ((field, number),) = given_numbers.items()
    if field == "steer":
        return dictionary.steer(given.feature, number, layer=layer, tokens=tokens)
    change = dictionary.clamp if field == "clamp" else dictionary.scale
    return change(given.feature, number, layer=layer, tokens=tokens)


def _edit(name: str, given: EditFields) -> Edit:
    if given.point is None:
        raise InvalidRequest(f"{name}.point is missing: give the name of a point")
    kind, known = given.edit, dict[str, Any]()
    if kind == "scale" or (kind == "add" and given.factor is not None):
        known["factor"] = given.factor
    if kind in ("add", "replace") or (kind == "ablate" and given.values is not None):
        known["vector" if kind == "add" else "values"] = _values(name, given)
    has_values = bool(known.keys() & {"vector", "values"})
    for field, used in (("factor", "factor" in known), ("values", has_values), ("shape", has_values)):
        if getattr(given, field) is not None and not used:
            raise InvalidRequest(f"{name} has {field!r}, which {kind} does not take")
    return KINDS[kind](given.point, **known)


def _values(name: str, given: EditFields) -> NDArray[np.float32]:
    values, shape = given.values, given.shape
    if values is None:
        raise InvalidRequest(f"{name}.values is missing: give numbers, or base64 of float32")
    try:
        if isinstance(values, str):
            array = np.frombuffer(base64.b64decode(values, validate=True), "<f4").astype(np.float32)
        else:
            with np.errstate(over="ignore"):  # the edit rejects values that overflow
                array = np.asarray(values, np.float32)
        return array if shape is None else array.reshape(shape)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise InvalidRequest(
            f"{name}.values={brief(values)}: must be numbers, or base64 of float32, as many as the shape has"
        ) from None
