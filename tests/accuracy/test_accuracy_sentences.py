"""Sentence vectors of real encoders against transformers in float32 (tests/oracles/sentences_oracle.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.tiny import GOLDENS

import pellucid
from pellucid.errors import ContextOverflow
from pellucid.llm import LLM
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable

Record = Callable[[str, object], None]
LONGEST = {"minilm": 256, "all-mpnet-base-v2": 384}
"""The models, and the number of ids to which the golden truncates, as sentence-transformers does."""
WORST, MEAN = 0.999, 0.9997
"""The least cosines to float32 by default: matrices are quantized when they are loaded (decision 52)."""

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["minilm", pytest.param("all-mpnet-base-v2", marks=pytest.mark.long)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(name: str) -> Iterator[LLM]:
    llm = pellucid.load(name, context=LONGEST[name])
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def golden(name: str) -> dict[str, Any]:
    with np.load(GOLDENS / f"{name}.npz") as file:
        ids = [part.tolist() for part in np.split(file["ids"], file["offsets"][1:-1])]
        return {"texts": file["sentences"].tolist(), "ids": ids, "vectors": file["vectors"]}


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def vector_of(encoder: LLM, ids: list[int]) -> np.ndarray:
    sequence = BlockTable()
    try:
        return encoder.runner.forward([Chunk(sequence, ids, outputs=0)])
    finally:
        encoder.runner.cache.truncate(sequence, 0)


def test_vectors_of_the_golden_ids(encoder: LLM, golden: dict[str, Any], record_property: Record) -> None:
    vectors = np.concatenate([vector_of(encoder, ids) for ids in golden["ids"]])
    cosine = cosines(vectors, golden["vectors"])
    record_property("worst_cosine", float(cosine.min()))
    print(f"{encoder.spec.name}: cosine at least 1 - {1 - cosine.min():.2g} over {len(cosine)} sentences")
    assert len(cosine) == 50
    assert cosine.min() >= WORST
    assert cosine.mean() >= MEAN
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


def test_sentences_become_the_golden_ids(encoder: LLM, golden: dict[str, Any]) -> None:
    ids, most = ([encoder.tokenizer.encode(text, parse_special=True) for text in golden["texts"]], encoder.context)
    assert [i if len(i) <= most else [*i[: most - 1], i[-1]] for i in ids] == golden["ids"]


def test_precise_vectors_equal_transformers(name: str, golden: dict[str, Any]) -> None:
    with pellucid.load(name, context=LONGEST[name], precise=True) as llm:
        vectors = np.concatenate([vector_of(llm, ids) for ids in golden["ids"]])
    np.testing.assert_allclose(vectors, golden["vectors"], rtol=0, atol=1e-5)


def test_embed_gives_the_golden_vectors_together_and_alone(encoder: LLM, golden: dict[str, Any]) -> None:
    plain = [i for i, text in enumerate(golden["texts"]) if "[CLS]" not in text]  # embed treats it as text
    assert len(plain) >= 49
    texts = [golden["texts"][i] for i in plain]
    vectors = encoder.embed(texts, truncate=True)
    assert cosines(vectors, golden["vectors"][plain]).min() >= WORST
    alone = np.concatenate([encoder.embed([text], truncate=True) for text in texts[:10]])
    np.testing.assert_array_equal(vectors[:10], alone)


def test_text_above_the_context_is_refused_unless_it_may_be_cut(
    name: str, encoder: LLM, golden: dict[str, Any]
) -> None:
    longest = max(golden["texts"], key=len)
    with pytest.raises(ContextOverflow, match=str(LONGEST[name])):
        encoder.embed(["short", longest])
    assert encoder.embed([longest], truncate=True).shape == (1, encoder.spec.embedding.width)
