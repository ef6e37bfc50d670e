"""A text has the same vector, bit for bit, alone, among others, with any number of threads, and when it is traced."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pellucid
from pellucid.llm import LLM
from pellucid.testing.random_model import random_model

WORDS = [
    "the",
    "of",
    "and",
    "people",
    "by",
    "for",
    "in",
    "that",
    "this",
    "with",
    "from",
    "have",
    "word",
    "time",
    "year",
    "state",
    "over",
    "new",
    "some",
    "could",
]


Alone = tuple[LLM, list[str], np.ndarray]
"""A model, texts, and the vectors of the texts when each runs alone."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "bert"
    return random_model("bert", path, kind="safetensors", layers=2, width=64, heads=2)


@pytest.fixture(scope="module", params=[False, True], ids=["default", "precise"])
def precise(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def encoder(bert: Path, precise: bool) -> Iterator[Alone]:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(70)]
    with pellucid.load(bert, precise=precise, threads=1) as llm:
        yield llm, texts, np.concatenate([llm.embed([text], truncate=True) for text in texts])


def test_among_others(encoder: Alone) -> None:
    llm, texts, alone = encoder
    assert np.array_equal(llm.embed(texts, truncate=True), alone)
    assert np.array_equal(llm.embed(texts[::-1], truncate=True), alone[::-1])


@pytest.mark.parametrize("threads", [2, 3])
def test_on_any_number_of_threads(encoder: Alone, bert: Path, precise: bool, threads: int) -> None:
    _, texts, alone = encoder
    with pellucid.load(bert, precise=precise, threads=threads) as other:
        assert np.array_equal(other.embed(texts, truncate=True), alone)


def test_traced(encoder: Alone) -> None:
    llm, texts, alone = encoder
    with llm.trace("blocks.*.residual", "blocks.*.feedforward.hidden", "blocks.0.attention.pattern"):
        assert np.array_equal(llm.embed(texts[:9], truncate=True), alone[:9])
