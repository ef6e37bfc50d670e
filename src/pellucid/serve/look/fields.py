"""Common fields of the page's requests: a prompt, and edits of values."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.serve.body import PLAIN, Body, BodyForm
from pellucid.serve.model import ServedModel
from pellucid.serve.openai.fields import OPENAI_BODY
from pellucid.trace.edits import Edit, ablate, add, replace, scale
from pellucid.util.checks import token_id

LOOK_BODY = BodyForm(renamed=OPENAI_BODY.renamed, defaults=PLAIN)
MOST_EDITS = 256
KINDS: Mapping[str, Callable[..., Edit]] = {
    "ablate": ablate,
    "scale": scale,
    "add": add,
    "replace": replace,
}


def prompt_of(body: Body, llm: ServedModel) -> list[int]:
    """Tokens of the body's ``prompt`` (text or token ids) or ``messages``.

    Raises:
        InvalidRequest: the body has neither or both.
    """
    messages, prompt = body.take("messages"), body.take("prompt")
    if (messages is None) == (prompt is None):
        raise InvalidRequest("prompt: give either a prompt (a text, or token ids) or messages")
    if messages is None and not isinstance(prompt, (str, list)):
        raise InvalidRequest(f"prompt={brief(prompt)}: must be a text or token ids")
    if llm.spec.head is None:
        return _sentence(prompt, llm)
    return llm.inputs.prompt(prompt if messages is None else messages)


def _sentence(prompt: Any, llm: ServedModel) -> list[int]:
    """Tokens of a sentence for an encoder."""
    if isinstance(prompt, str):
        return llm.inputs.sentences([prompt])[0]
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= llm.context:
        raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, or 1 to {llm.context:,} token ids")
    return [token_id("prompt", token, llm.spec.embedding.vocabulary) for token in prompt]


def edits_of(body: Body, llm: ServedModel) -> list[Edit]:
    """The body's ``edits``: {"edit": "ablate", "point": NAME}, "scale" with ``factor``, "add" or "replace" with values.

    Values are numbers, or base64 of little-endian float32 with their ``shape``.

    Raises:
        InvalidRequest: an edit is wrong; the message names it.
    """
    given = body.objects("edits")
    if len(given) > MOST_EDITS:
        raise InvalidRequest(f"edits has {len(given):,} edits; the limit is {MOST_EDITS:,}")
    return [_edit(f"edits[{at}]", dict(one)) for at, one in enumerate(given)]


def _edit(name: str, given: dict[str, Any]) -> Edit:
    kind, point = given.pop("edit", None), given.pop("point", None)
    if kind not in KINDS:
        raise InvalidRequest(f"{name}.edit={brief(kind)}: must be one of {', '.join(KINDS)}")
    if not isinstance(point, str):
        raise InvalidRequest(f"{name}.point={brief(point)}: must be the name of a point")
    known: dict[str, Any] = {}
    if kind in ("scale", "add") and ("factor" in given or kind == "scale"):
        known["factor"] = given.pop("factor", None)
    if kind in ("add", "replace") or (kind == "ablate" and "values" in given):
        known["vector" if kind == "add" else "values"] = _values(name, given)
    if given:
        raise InvalidRequest(f"{name} has {brief(min(given))}, which {kind} does not take")
    return KINDS[kind](point, **known)


def _values(name: str, given: dict[str, Any]) -> NDArray[np.float32]:
    values, shape = given.pop("values", None), given.pop("shape", None)
    if values is None:
        raise InvalidRequest(f"{name}.values is missing: numbers, or base64 of float32")
    try:
        if isinstance(values, str):
            made = np.frombuffer(base64.b64decode(values, validate=True), "<f4").astype(np.float32)
        else:
            with np.errstate(over="ignore"):  # the edit rejects values that overflow
                made = np.asarray(values, np.float32)
        return made if shape is None else made.reshape(shape)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise InvalidRequest(
            f"{name}.values={brief(values)}: must be numbers, or base64 of float32, that fill the shape"
        ) from None


def no_more(body: Body, what: str) -> None:
    """Reject unread fields."""
    if left := body.rest():
        raise InvalidRequest(f"unknown field {brief(min(left))}: {what}")
