"""A text has the same vector, bit for bit, alone, among others, on any number of threads, traced, on any CPU.

The encoders are BERT, whose matrices have 8 bits by default, and ModernBERT, whose matrices are bfloat16 by default.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.processes import environment, python, run

import pellucid
from pellucid.kernels.core import isa
from pellucid.llm import LLM
from pellucid.testing import random_model

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


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / request.param
    return random_model(request.param, path, kind="safetensors", layers=2, width=64, heads=2)


@pytest.fixture(scope="module", params=[False, True], ids=["default", "precise"])
def precise(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def encoder(folder: Path, precise: bool) -> Iterator[Alone]:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) for _ in range(70)]
    with pellucid.load(folder, precise=precise, threads=1) as llm:
        yield llm, texts, np.concatenate([llm.embed([text], truncate=True) for text in texts])


def test_among_others(encoder: Alone) -> None:
    llm, texts, alone = encoder
    assert np.array_equal(llm.embed(texts, truncate=True), alone)
    assert np.array_equal(llm.embed(texts[::-1], truncate=True), alone[::-1])


@pytest.mark.parametrize("threads", [2, 3])
def test_on_any_number_of_threads(encoder: Alone, folder: Path, precise: bool, threads: int) -> None:
    _, texts, alone = encoder
    with pellucid.load(folder, precise=precise, threads=threads) as other:
        assert np.array_equal(other.embed(texts, truncate=True), alone)


def test_traced(encoder: Alone) -> None:
    llm, texts, alone = encoder
    with llm.trace("blocks.*.residual", "blocks.*.feedforward.hidden", "blocks.0.attention.pattern"):
        assert np.array_equal(llm.embed(texts[:9], truncate=True), alone[:9])


VECTORS = """
import json, sys, numpy, pellucid
texts, folder, file = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
with pellucid.load(folder, threads=2) as llm:
    numpy.save(file, llm.embed(texts, truncate=True))
"""


@pytest.mark.long
def test_on_any_instruction_set(folder: Path, tmp_path: Path) -> None:
    draw = random.Random(4)
    texts = [" ".join(draw.choices(WORDS, k=count)) for count in (1, 7, 40, 60)]
    files = {known.name: tmp_path / f"{known.name}.npy" for known in (*isa.possible(), *isa.emulated())}
    run(
        [
            (python(VECTORS, json.dumps(texts), str(folder), str(file)), environment(PELLUCID_ISA=name))
            for name, file in files.items()
        ]
    )
    vectors = {name: np.load(file) for name, file in files.items()}
    best, *others = vectors
    for name in others:
        assert vectors[name].tobytes() == vectors[best].tobytes(), f"{name} and {best} differ"
