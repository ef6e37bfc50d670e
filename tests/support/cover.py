"""The cover set: a few tiny models that together have every kernel key and every field value of all tiny models.

Tests over all tiny models are quick for the models of the cover set and slow for the other models (conftest.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from pellucid import pipeline
from pellucid.model.outputs import PairPrompt
from pellucid.plan.bind import layouts
from support.tiny import ENCODERS, SOURCES, TINY, opened

COLLECTIONS: Mapping[str, Mapping[str, Path]] = {"decoders": TINY, "encoders": ENCODERS, "encoder-decoders": SOURCES}
"""Tests are parametrized over each of them, so that each has a cover of its own."""
FREE = ("ModelSpec.family", "ModelSpec.name", "ModelSpec.adapter", "ModelSpec.prompts")
FREE += tuple(f"{PairPrompt.__name__}.{field.name}" for field in msgspec.structs.fields(PairPrompt))
"""Fields of free text, and prompts: no operation depends on them."""


@cache
def features(path: Path) -> frozenset[str]:
    """The kernel keys of a model's plans, and the field values of its spec, as text."""
    keys = set()
    with opened(path) as (checkpoint, model):
        for activation_bits in (8, 16, 24):
            plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), activation_bits)
            encoder = plan.encoder.with_setup if plan.encoder else ()
            keys |= {operation.kernel for operation in (*plan.with_setup, *encoder)}
    return frozenset({*map(str, keys), *field_values(model.spec)})


def field_values(part: msgspec.Struct) -> Iterator[str]:
    """``Struct.field=value`` for every field of a part of a spec, at any depth.

    The value of a number is "default" or "other"; of a struct, its class; of a tuple, "some" or "none".
    """
    for field in msgspec.structs.fields(type(part)):
        name, value = f"{type(part).__name__}.{field.name}", getattr(part, field.name)
        if name not in FREE:
            yield f"{name}={_kind(value, field.default)}"
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, msgspec.Struct):
                yield f"{name}={_kind(inner, None)}"
                yield from field_values(inner)


def _kind(value: Any, default: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return type(value).__name__
    if isinstance(value, tuple):
        return "some" if value else "none"
    if isinstance(value, (bool, str)) or value is None:
        return value
    return "default" if value == default else "other"


@cache
def cover_of(collection: str) -> tuple[str, ...]:
    """Names of some models of a collection that have every feature of all its models: a greedy cover."""
    have = {name: features(path) for name, path in COLLECTIONS[collection].items()}
    missing, found = set[str]().union(*have.values()), list[str]()
    while missing:
        found.append(max(have, key=lambda name: len(have[name] & missing)))
        missing -= have[found[-1]]
    return tuple(found)


def others() -> frozenset[str]:
    """Names of the tiny models outside the cover set."""
    covers = {name for collection in COLLECTIONS for name in cover_of(collection)}
    return frozenset(name for models in COLLECTIONS.values() for name in models) - covers
