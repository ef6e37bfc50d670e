"""Builds a tokenizer from ``tokenizer.json``, the format of Hugging Face ``tokenizers``.

In: the file's contents. Out: a :class:`Tokenizer`. ``files/json_components.py`` builds each component of the file.
No part is skipped: an unknown component, field or value raises :class:`UnsupportedModel`, which names it.
``truncation`` and ``padding`` are read, but applied only on request.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from pellucid.errors import FileFormatError, InvalidRequest, UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.tokenize import parsed_cache
from pellucid.tokenize.files import json_components
from pellucid.tokenize.files.json_model import JsonModelReader
from pellucid.tokenize.files.sidecar import Sidecar, parse_json
from pellucid.tokenize.files.tokenizer_json import Json, TokenizerJson
from pellucid.tokenize.stages import normalize
from pellucid.tokenize.stages.pretokenize import AddedToken, AddedTokens, PreTokenizer
from pellucid.tokenize.tokenizer import Tokenizer
from pellucid.tokenize.tokenizer_model import TokenizerModel

Models = Sequence[JsonModelReader]
Reader = Callable[[bytes, Path, Sidecar], Json]


def from_file(path: Path, sidecar: Sidecar, models: Models, read: Reader | None = None) -> Tokenizer:
    """A tokenizer from a ``tokenizer.json``; a reader in ``models`` builds the model stage.

    ``read`` is for a file of another format. It takes the file's bytes, its path and its sidecar files, and returns the
    contents of a ``tokenizer.json``. The large parts are parsed once and cached.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    data = path.read_bytes()
    identity = [path.name, sidecar.named, sidecar.added, sidecar.kind, sidecar.model_type]
    context = b"" if read is None else json.dumps(identity).encode()
    place = parsed_cache.cache_name(data, context) if len(data) >= parsed_cache.WORTH_CACHING else None
    if place is not None and (arrays := parsed_cache.read(place)) is not None:
        spec = json.loads(parsed_cache.text_of(arrays["spec"]))
        return _build(TokenizerJson(path, spec, arrays, numbers=read is None), sidecar, models)
    parts = _checked(path, parse_json(data, path) if read is None else read(data, path, sidecar), models, read is None)
    tokenizer = _build(parts, sidecar, models)
    if place is not None and (arrays := parts.to_cache()) is not None:
        parsed_cache.write(place, arrays)
    return tokenizer


def from_spec(path: Path, spec: Json, sidecar: Sidecar, models: Models) -> Tokenizer:
    """A tokenizer of a known class, from its vocabulary as the contents of a ``tokenizer.json``.

    Raises :class:`FileFormatError`, :class:`UnsupportedModel`.
    """
    tokenizer = _build(_checked(path, spec, models, numbers=False), sidecar, models)
    return dataclasses.replace(tokenizer, post_processor=sidecar.template(tokenizer.vocabulary, path))


def _checked(path: Path, spec: Json, models: Models, numbers: bool) -> TokenizerJson:
    known = sorted({model.type for model in models})
    name = spec["model"].get("type") if isinstance(spec.get("model"), dict) else None
    if name is None:
        raise FileFormatError(path, "model.type", "missing")
    if name not in known:
        raise UnsupportedModel(
            f"{path.name}: model type {brief(name)} is not implemented; known are {', '.join(known)}"
        )
    return TokenizerJson(path, spec, numbers=numbers)


def _normalized(parts: TokenizerJson, normalizer: normalize.Normalizer | None) -> list[AddedToken]:
    """The added tokens that are matched in normalized text, with their texts normalized. Also sets ``parts.spoken``."""
    tokens = [token for token in parts.added if token.normalized]
    if normalizer is None:
        return tokens
    try:
        normalized = [replace(token, text=normalizer(token.text)) for token in tokens]
    except InvalidRequest as refused:
        raise parts.wrong("added_tokens", str(refused)) from None
    for token, written in zip(tokens, normalized):
        if token.text and not written.text:
            problem = f"the normalizer leaves nothing of {brief(token.text)}, so the token can never match"
            raise parts.wrong("added_tokens", problem)
    changed = {new.id: new.text for new, old in zip(normalized, tokens) if new.text != old.text}
    if changed:
        parts.spoken = [changed.get(index, token) for index, token in enumerate(parts.vocabulary.tokens)]
    return normalized


def _build(parts: TokenizerJson, sidecar: Sidecar, models: Models) -> Tokenizer:
    stages = parts.build(json_components.pre_tokenizers, "pre_tokenizer")
    (reader,) = (r for r in models if r.type == parts.model["type"] and r.claims(parts, stages))
    model: TokenizerModel = parts.build(lambda parts, _: reader.build(parts), "model")
    vocabulary = parts.vocabulary
    template, trims = parts.build(json_components.post_processors, "post_processor")
    if sidecar.speaks(vocabulary):
        # The source language of the config overrides the file, as in transformers.
        template = sidecar.template(vocabulary, parts.path)
    normalizer = normalize.sequence(parts.build(json_components.normalizers, "normalizer"))
    normalized = _normalized(parts, normalizer)
    return Tokenizer(
        vocabulary=vocabulary,
        added=AddedTokens(token for token in parts.added if not token.normalized),
        normalized_added=AddedTokens(normalized),
        normalizer=normalizer,
        pre_tokenizer=PreTokenizer(tuple(json_components.unspelled(stages) or () if model.spells_bytes else stages)),
        model=model,
        post_processor=template,
        trims=trims,
        decoder=parts.build(json_components.decoder, "decoder"),
        **sidecar.arguments(vocabulary),
        truncation=parts.build(json_components.truncation, "truncation"),
        padding=parts.build(json_components.padding, "padding"),
    )
