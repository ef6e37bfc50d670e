"""The cover set of tiny models has every kernel key and every field value (tests/support/cover.py)."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest
from support.cover import COLLECTIONS, FREE, cover_of, features, others

from pellucid.model.spec import ModelSpec

ELSEWHERE = {
    "Attention": ("smoothed=True", "value_dim=default"),
    "DecisionBlocks": ("count=other", "norm=Norm", "types=other"),
    "DeltaNet": ("tiled=True",),
    "FeedForward": ("smoothed=True",),
    "Head": ("labels=other",),
    "Labels": ("relevant=other",),
    "ModelSpec": (
        *("adapters=some", "decision=DecisionBlocks", "matryoshka=some", "max_active=other", "positions=other"),
        *("similarity=dot", "similarity=euclidean", "similarity=manhattan", "truncate_dim=other"),
        *("task=decide", "task=sparse", "task=tokens"),
    ),
    "PerLayer": tuple(f"activation={name}" for name in ("clamped_silu", "gelu", "relu", "relu2", "silu")),
    "Pooling": ("kind=max", "kind=mean_sqrt", "kind=weighted", "of_logits=True"),
    "RotaryScaling": (
        *("fast=other", "high_frequency_factor=other", "low_frequency_factor=other", "slow=other"),
        "trained_context=default",
    ),
    "TokenConvolution": tuple(f"activation={name}" for name in ("", "gelu_tanh", "relu", "silu", "tanh")),
}
"""Field values that no tiny model has: GGUF files, saved folders and decision models that tests write have them, and
activations of parts that published models have with one activation only.
"""


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_cover_has_every_feature_of_every_model(collection: str) -> None:
    models = COLLECTIONS[collection]
    every = set[str]().union(*map(features, models.values()))
    assert every == set[str]().union(*(features(models[name]) for name in cover_of(collection)))
    assert len(cover_of(collection)) < len(models) / 3
    assert not others().intersection(cover_of(collection))


def allowed(part: type[msgspec.Struct], seen: set[type]) -> Iterator[str]:
    """The field values that the types of a struct, and of the structs in its fields, allow, as in ``features``."""
    seen.add(part)
    for field in msgspec.structs.fields(part):
        name = f"{part.__name__}.{field.name}"
        for kind in alternatives(field.type):
            items = alternatives(typing.get_args(kind)[0]) if typing.get_origin(kind) is tuple else [kind]
            for item in items:
                if isinstance(item, type) and issubclass(item, msgspec.Struct):
                    yield f"{name}={item.__name__}"
                    if item not in seen:
                        yield from allowed(item, seen)
            if name not in FREE:
                yield from (f"{name}={value}" for value in values(kind, field))


def alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def values(kind: Any, field: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return ("none", "some") if field.default == () else ("some",)
    if kind in (bool, type(None)):
        return (True, False) if kind is bool else (None,)
    if kind in (int, float):
        return ("other",) if field.required or field.default is None else ("default", "other")
    return ()


def test_every_value_that_a_type_allows_is_in_the_cover() -> None:
    covers = (features(models[name]) for key, models in COLLECTIONS.items() for name in cover_of(key))
    missing = set(allowed(ModelSpec, set())) - set[str]().union(*covers)
    assert missing == {f"{part}.{value}" for part, found in ELSEWHERE.items() for value in found}
