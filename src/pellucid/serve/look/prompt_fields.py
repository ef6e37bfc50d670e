"""Fields of the page's requests: a prompt, edits of values, tokens in the page's form."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pellucid.base_llm import BaseLLM
from pellucid.errors import InvalidRequest, brief
from pellucid.llm import LLM
from pellucid.serve.chat.messages import ChatMessage
from pellucid.serve.request_body import Fields, ModelFields, RequestBody, TokenId
from pellucid.tokenize import Tokenizer
from pellucid.tokenize.stages.decode import CharacterGroup, several
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import Edit, ablate, add, mask, replace, scale
from pellucid.util.checks import token_id

# Edits in the page's requests: changes of points, and of the features of the server's dictionaries.

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


def edits_of(edits: Sequence[EditFields], llm: BaseLLM[Any]) -> list[Edit]:
    if len(edits) > MAX_EDITS:
        raise InvalidRequest(f"edits has {len(edits):,} edits; the limit is {MAX_EDITS:,}")
    found = [edit for at, one in enumerate(edits) for edit in _edits(f"edits[{at}]", one, llm)]
    if len(found) > MAX_EDITS:
        raise InvalidRequest(f"edits: the edits of features change {len(found):,} values; the limit is {MAX_EDITS:,}")
    return found


def dictionary_of(field: str, name: str | None, llm: BaseLLM[Any]) -> Dictionary:
    """The dictionary with a name."""
    if not isinstance(llm, LLM):
        raise InvalidRequest(
            f"{field}={brief(name)}: features can be changed only in the server's own process: serve without replicas"
        )
    if name is None or name not in llm.dictionaries:
        known = ", ".join(llm.dictionaries)
        has = f"must be one of {brief(known)}" if known else "the server has none: start it with --dictionaries"
        raise InvalidRequest(f"{field}={brief(name)}: {has}")
    return llm.dictionaries[name]


def _edits(name: str, given: EditFields, llm: BaseLLM[Any]) -> list[Edit]:
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


# Common fields of the page's requests: a prompt, and edits of values (below).


class PromptFields(ModelFields, frozen=True, kw_only=True):
    """Fields of requests about a prompt: text or token ids in ``prompt``, or ``messages``.

    In an encoder-decoder the prompt is the source, and ``answer`` has the tokens of the answer so far, without the
    first tokens of the decoder.
    """

    prompt: Annotated[str | list[TokenId] | None, Meta(title="a text or token ids")] = None
    answer: Annotated[list[TokenId] | None, Meta(title="token ids")] = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    edits: Sequence[EditFields] = ()


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of a prompt, as ``LLM.request`` takes them: ``ids``, and ``answer`` in an encoder-decoder.

    ``read`` are the tokens that the next token follows: the prompt, or the tokens of the decoder. ``source`` has the
    tokens of the source (None: the model has no source).
    """

    ids: list[int]
    answer: list[int]
    read: list[int]
    source: list[int] | None = None


def prompt_of(body: RequestBody[Any], llm: BaseLLM[Any]) -> PromptTokens:
    """Tokens of the prompt or the messages of a body with ``PromptFields``."""
    messages, prompt, answer = body.raw.get("messages"), body.fields.prompt, body.fields.answer
    if (messages is None) == (prompt is None):
        raise InvalidRequest("prompt: give either a prompt (a text, or token ids) or messages")
    if answer is not None and not llm.spec.encoder:
        raise InvalidRequest(
            f"answer={brief(answer)}: only an encoder-decoder has an answer beside its prompt: add it to the prompt"
        )
    if not llm.spec.generates:
        sentence = _sentence(prompt, llm)
        return PromptTokens(sentence, [], sentence)
    ids = llm.inputs.prompt(prompt if messages is None else messages)
    if not llm.spec.encoder:
        return PromptTokens(ids, [], ids)
    answer = [token_id("answer", token, llm.inputs.vocabulary) for token in answer or ()]
    return PromptTokens(ids, answer, llm.inputs.decoder_prompt(ids, answer), ids)


def _sentence(prompt: Any, llm: BaseLLM[Any]) -> list[int]:
    """Tokens of a sentence for an encoder."""
    if isinstance(prompt, str):
        return llm.inputs.sentences([prompt])[0]
    if not isinstance(prompt, list) or not 1 <= len(prompt) <= llm.context:
        raise InvalidRequest(f"prompt={brief(prompt)}: must be a text, or 1 to {llm.context:,} token ids")
    return [token_id("prompt", token, llm.spec.embedding.vocabulary) for token in prompt]


# Tokens in the page's form: ids, texts, and characters that consist of several tokens.


def described(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, Any]:
    """``pieces``: the text of each token. ``characters``: characters of several tokens, as {first, stop, text}."""
    return {
        "pieces": [tokenizer.piece(token) for token in ids],
        "characters": [group._asdict() for group in several(tokenizer.characters(ids))],
    }


def prompt_fields(tokenizer: Tokenizer, prompt: PromptTokens) -> dict[str, Any]:
    """The tokens that the model reads, with their texts. ``source`` has the tokens of an encoder-decoder's source."""
    fields = {"ids": prompt.read, **described(tokenizer, prompt.read)}
    return fields if prompt.source is None else {**fields, "source": source_fields(tokenizer, prompt.source)}


def source_fields(tokenizer: Tokenizer, source: list[int]) -> dict[str, Any]:
    return {"ids": source, **described(tokenizer, source)}


def token_fields(tokenizer: Tokenizer, token: int, group: CharacterGroup) -> dict[str, Any]:
    """A token id with its ``piece``. A token that continues a character also has the ``character``."""
    fields = {"token": token, "piece": tokenizer.piece(token)}
    return {**fields, "character": group._asdict()} if several([group]) else fields
