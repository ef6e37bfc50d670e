"""The routes of encoders on a server with replicas: the same answers as from a server with its own engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.encoder_models import encoder_models
from support.replicas import ReplicaProcess, loads_from
from support.served import Served, serving

pytestmark = pytest.mark.slow
MODELS = ("prompted", "ranker", "labels")
TEXTS = ["to see", "a b c", "x"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served]]:
    folder = encoder_models(tmp_path_factory.mktemp("encoders"))
    replicas = {name: ReplicaProcess(folder / name, name) for name in MODELS}
    try:
        addresses = {name: [one.address] for name, one in replicas.items()}
        with (
            serving(folder, names=MODELS) as here,
            serving(folder, load=loads_from(folder, addresses), names=MODELS) as there,
        ):
            yield here, there
    finally:
        for one in replicas.values():
            one.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "prompted", "input": TEXTS, "input_type": "query", "dimensions": 16}),
        ("/v2/embed", {"model": "prompted", "texts": TEXTS, "input_type": "search_query", "truncate": "START"}),
        ("/v2/rerank", {"model": "ranker", "query": "to see", "documents": TEXTS, "max_tokens_per_doc": 2}),
        ("/score", {"model": "ranker", "text_1": TEXTS, "text_2": TEXTS}),
        ("/classify", {"model": "labels", "input": TEXTS}),
        ("/predict", {"model": "labels", "inputs": [["a", "b"], "c"], "raw_scores": True}),
        ("/similarity", {"model": "prompted", "inputs": {"source_sentence": "a", "sentences": TEXTS}}),
        ("/pooling", {"model": "labels", "input": TEXTS}),
    ],
)  # fmt: skip
def test_answers_are_the_same(servers: tuple[Served, Served], path: str, body: dict[str, Any]) -> None:
    found = [httpx.post(one.url + path, json=body, headers={"X-Request-Id": "same"}, timeout=60) for one in servers]
    assert [one.status_code for one in found] == [200, 200], found[1].text
    here, there = (one.json() for one in found)
    if isinstance(here, dict) and "created" in here:
        del here["created"], there["created"]
    assert here == there


def test_a_model_of_another_task_is_refused(servers: tuple[Served, Served]) -> None:
    body = {"model": "labels", "input": "a"}
    here, there = (httpx.post(one.url + "/v1/embeddings", json=body) for one in servers)
    assert (here.status_code, here.json()) == (there.status_code, there.json())
    assert there.status_code == 400
