"""Requests to encoders, for all APIs: prompts, truncation, token ids, numbers of vectors."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pellucid.encoders.ranking import prompt_for
from pellucid.encoders.tasks import EncoderModel, unit_length
from pellucid.engine.inputs import Inputs, several
from pellucid.errors import InvalidRequest, brief, shown
from pellucid.model.outputs import Task, UnitLength
from pellucid.serve.request_body import listed_texts
from pellucid.tokenize.encoding import Side

ROUTES: Mapping[Task, str] = {
    "generate": "POST /v1/completions",
    "embed": "POST /v1/embeddings",
    "sparse": "POST /embed_sparse",
    "tokens": "POST /embed_all",
    "classify": "POST /classify",
    "tag": "POST /pooling",
    "answer": "pellucid answer",
    "fill": "pellucid fill",
    "decide": "POST /v1/systemone",
}
"""The route for models of each task; a command if there is no route."""
PURPOSES: Mapping[str, str] = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
}
"""The purposes "query" and "document" in the words of vLLM, Cohere, Voyage and Jina."""


@dataclass(frozen=True)
class TruncatingModel:
    """A model whose ``inputs`` cut texts to fewer tokens than its context, or at the other end."""

    model: EncoderModel
    inputs: Inputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def truncating(model: EncoderModel, tokens: int | None = None, side: Side = "right") -> EncoderModel:
    """The model with texts of at most ``tokens`` tokens (None or -1: its context), cut at ``side``."""
    if tokens == 0:
        raise InvalidRequest("truncate_prompt_tokens=0: must be at least 1, or -1 for the model's context")
    context = model.inputs.context if tokens is None or tokens < 0 else min(tokens, model.inputs.context)
    return cast(EncoderModel, TruncatingModel(model, structs.replace(model.inputs, context=context, cut=side)))


def check_task(model: EncoderModel, *tasks: Task) -> None:
    """Refuse a model that cannot do any of ``tasks``; the message names the route for it."""
    model.inputs.check_task(*tasks, use=ROUTES[model.spec.task], load_as="serve this model with --task ")


def prompt_of_name(model: EncoderModel, name: str | None) -> str:
    """A prompt's name, if the model has a prompt of this name. None: the default prompt, ""."""
    known = [one for one, _ in model.spec.prompts if one]
    if name and name not in known:
        raise InvalidRequest(
            f"prompt_name={brief(name)}: the model has no prompt of this name (known: "
            f"{', '.join(map(shown, known)) or 'none'}): leave it out"
        )
    return name or ""


def prompt_of_purpose(model: EncoderModel, purpose: str | None) -> str:
    """The name of the prompt for a purpose: the name of a prompt itself, or a word of ``PURPOSES``.

    A model without a prompt for it reads the text as it is (``encoders/ranking.py``).
    """
    if not purpose or purpose in dict(model.spec.prompts):
        return purpose or ""
    return prompt_for(model.inputs, PURPOSES.get(purpose, purpose))


TextInput: TypeAlias = str | list[int]


def listed_inputs(name: str, given: Any) -> Sequence[TextInput]:
    """The texts of a request; each is a text or its token ids. Objects with a ``text`` count as their text."""
    texts: Any = [getattr(one, "text", one) for one in given] if isinstance(given, list) else given
    items: Any = (several(texts) or [texts]) if texts != [] else []
    if not items or not all(isinstance(one, str) or (isinstance(one, list) and one) for one in items):
        raise InvalidRequest(f"{name}={brief(given)}: must be a text, token ids, or a list of these")
    return listed_texts(name, items)


def encoded_texts(
    model: EncoderModel,
    texts: Sequence[TextInput],
    truncate: bool | None = None,
    prompt: str = "",
    limit: int | None = None,
    side: Side = "right",
) -> list[list[int]]:
    """The token ids of each text. Token ids stay unchanged, or are cut like a text.

    ``truncate`` cuts texts that are too long (None: if there is a ``limit``). ``prompt`` is the name of a prompt, which
    is put before texts. ``limit`` and ``side`` are as in ``truncating``.

    Raises:
        InvalidRequest: a text is empty, an id is not in the vocabulary, or token ids have a prompt.
        ContextOverflow: a text is longer than the context and is not cut.
    """
    inputs = truncating(model, limit, side).inputs
    truncate = limit is not None if truncate is None else truncate

    def encoded(text: TextInput) -> list[int]:
        if isinstance(text, str):
            return inputs.sentences([text], truncate, prompt)[0]
        if prompt:
            raise InvalidRequest(f"the prompt {brief(prompt)} goes before a text, not before token ids: send texts")
        if truncate and len(text) > inputs.context:
            text = text[: inputs.context] if inputs.cut == "right" else text[-inputs.context :]
        return inputs.sentence_ids(text)

    return list(map(encoded, texts))


# Vectors in the number formats of responses: floats, bytes, bits, base64.
#
# Bytes and bits are of each vector alone, so a vector has the same bits in every batch.

VectorFormat: TypeAlias = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]


def formatted(vectors: NDArray[np.float32], form: VectorFormat) -> list[Any]:
    """The vectors (B, N) for JSON.

    - "float": numbers; "base64": base64 of the little-endian float32
    - "int8": x * 127 / max|x|, rounded; "uint8": the same plus 128
    - "ubinary": a bit for each component, 1 if it is above 0, eight in a byte with the first highest; "binary": the
      same minus 128. Source: ``quantize_embeddings`` in sentence-transformers
    """
    if form == "float":
        return list(vectors.tolist())
    if form == "base64":
        return [base64.b64encode(one.astype("<f4").tobytes()).decode() for one in vectors]
    if form in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=1).astype(np.int64)
        return list((packed - 128 if form == "binary" else packed).tolist())
    values = vectors.astype(np.float64)
    largest = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-30)
    steps = np.rint(values / largest * 127).astype(np.int64)
    return list((steps + 128 if form == "uint8" else steps).tolist())


def of_unit_length(
    model: EncoderModel, vectors: NDArray[np.float32], field: str, wanted: bool | None
) -> NDArray[np.float32]:
    """The vectors, scaled to length 1 if ``wanted``; None: as the model makes them."""
    layers = model.spec.output
    scaled = bool(layers) and isinstance(layers[-1], UnitLength)
    if wanted is False and scaled:
        raise InvalidRequest(f"{field}=False: the model itself scales its vectors to length 1: leave it out")
    return unit_length(vectors) if wanted and not scaled else vectors
